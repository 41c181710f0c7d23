//! Filters of lists: the part of AIP-160 that the indexes of the table answer, comparisons by `=`
//! joined by `AND`.

use tonic::Status;

use super::status;
use crate::{
    domain::{NameMatch, Role, State},
    proto::account_v1 as pb,
    service::MembershipFilter,
};

/// Longest filter, in bytes.
const MAX_FILTER_BYTES: usize = 1024;

/// A comparison: a field, and its value.
struct Comparison<'a> {
    field: &'a str,
    value: Operand,
}

enum Operand {
    /// A name of an enum's value.
    Name(String),
    /// A quoted text.
    Text(NameMatch),
}

/// Parses a filter of memberships. `name_field` is the field with the name by which the list is
/// ordered.
///
/// # Errors
/// INVALID_FIELD.
pub(in crate::grpc) fn membership_filter(
    filter: &str,
    name_field: &str,
) -> Result<MembershipFilter, Status> {
    let mut parsed = MembershipFilter::default();
    let fields = [name_field, "role", "state"];
    for Comparison { field, value } in comparisons(filter, &fields)? {
        match (field, value) {
            ("role", Operand::Name(name)) => parsed.role = Some(role(&name)?),
            ("state", Operand::Name(name)) => parsed.state = Some(state(&name)?),
            ("role" | "state", Operand::Text(_)) => {
                return Err(invalid(format!("{field} has values without quotes")));
            }
            (_, value) => parsed.name = name(field, value)?,
        }
    }
    Ok(parsed)
}

/// Parses a filter of users or organizations by name.
///
/// # Errors
/// INVALID_FIELD.
pub(in crate::grpc) fn name_filter(filter: &str, name_field: &str) -> Result<NameMatch, Status> {
    let mut parsed = NameMatch::default();
    for Comparison { field, value } in comparisons(filter, &[name_field])? {
        parsed = name(field, value)?;
    }
    Ok(parsed)
}

/// Whether a list is to be ordered by name.
///
/// # Errors
/// INVALID_FIELD.
pub(in crate::grpc) fn is_ordered(order_by: &str, name_field: &str) -> Result<bool, Status> {
    match order_by {
        "" => Ok(false),
        given if given == name_field => Ok(true),
        _ => {
            let why = format!("must be empty or {name_field}");
            Err(status::invalid_field("order_by", why))
        }
    }
}

fn name(field: &str, value: Operand) -> Result<NameMatch, Status> {
    match value {
        Operand::Text(name) => Ok(name),
        Operand::Name(_) => Err(invalid(format!("the value of {field} must have quotes"))),
    }
}

fn role(name: &str) -> Result<Role, Status> {
    match pb::Role::from_str_name(name) {
        Some(pb::Role::Owner) => Ok(Role::Owner),
        Some(pb::Role::Admin) => Ok(Role::Admin),
        Some(pb::Role::Member) => Ok(Role::Member),
        Some(pb::Role::Unspecified) | None => Err(invalid(
            "role must be ROLE_OWNER, ROLE_ADMIN or ROLE_MEMBER".to_owned(),
        )),
    }
}

fn state(name: &str) -> Result<State, Status> {
    match pb::State::from_str_name(name) {
        Some(pb::State::Active) => Ok(State::Active),
        Some(pb::State::Suspended) => Ok(State::Suspended),
        Some(pb::State::Unspecified | pb::State::Deleted) | None => Err(invalid(
            "state must be STATE_ACTIVE or STATE_SUSPENDED".to_owned(),
        )),
    }
}

/// The comparisons of a filter, each of another one of `fields`.
fn comparisons<'a>(filter: &'a str, fields: &[&str]) -> Result<Vec<Comparison<'a>>, Status> {
    if filter.len() > MAX_FILTER_BYTES {
        let why = format!("has {} bytes; allowed are {MAX_FILTER_BYTES}", filter.len());
        return Err(invalid(why));
    }
    let mut comparisons: Vec<Comparison<'_>> = Vec::new();
    let mut rest = filter.trim();
    while !rest.is_empty() {
        if !comparisons.is_empty() {
            rest = conjunction(rest)
                .ok_or_else(|| invalid("comparisons must be joined by AND".to_owned()))?;
        }
        let (field, after) = word(rest);
        let is_new = comparisons.iter().all(|other| other.field != field);
        if !fields.contains(&field) || !is_new {
            let fields = fields.join(", ");
            return Err(invalid(format!("must compare {fields}, each at most once")));
        }
        let after = after.trim_start().strip_prefix('=');
        let after = after.ok_or_else(|| invalid(format!("{field} must be followed by =")))?;
        let (value, after) = value(after.trim_start())?;
        comparisons.push(Comparison { field, value });
        rest = after.trim_start();
        if !rest.is_empty() && rest.len() == after.len() {
            return Err(invalid("a blank must follow each comparison".to_owned()));
        }
    }
    Ok(comparisons)
}

/// The text after `AND` and a blank.
fn conjunction(text: &str) -> Option<&str> {
    let after = text.strip_prefix("AND")?;
    let trimmed = after.trim_start();
    (trimmed.len() < after.len()).then_some(trimmed)
}

/// The leading letters, digits and underscores, and the text after them.
fn word(text: &str) -> (&str, &str) {
    let is_other = |found: char| !found.is_ascii_alphanumeric() && found != '_';
    text.split_at(text.find(is_other).unwrap_or(text.len()))
}

fn value(text: &str) -> Result<(Operand, &str), Status> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (name, after) = word(text);
        if name.is_empty() {
            return Err(invalid("a value is missing after =".to_owned()));
        }
        return Ok((Operand::Name(name.to_owned()), after));
    };
    let mut name = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((Operand::Text(NameMatch::Exactly(name)), &quoted[at + 1..])),
            '*' if quoted[at + 1..].starts_with('"') => {
                return Ok((Operand::Text(NameMatch::Prefix(name)), &quoted[at + 2..]));
            }
            '*' => {
                return Err(invalid(
                    "* must be the last character of a value".to_owned(),
                ));
            }
            '\\' => match characters.next() {
                Some((_, escaped @ ('"' | '\\' | '*'))) => name.push(escaped),
                _ => return Err(invalid(r#"\ must be followed by ", \ or *"#.to_owned())),
            },
            other => name.push(other),
        }
    }
    Err(invalid("a quote is missing".to_owned()))
}

fn invalid(why: String) -> Status {
    status::invalid_field("filter", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons_are_parsed_in_any_order() {
        let all = MembershipFilter {
            name: NameMatch::Prefix("mi\"c*\\".to_owned()),
            role: Some(Role::Admin),
            state: Some(State::Suspended),
        };
        for filter in [
            r#"member_username = "mi\"c\*\\*" AND role=ROLE_ADMIN AND state = STATE_SUSPENDED"#,
            r#" state=STATE_SUSPENDED  AND  role = ROLE_ADMIN AND member_username="mi\"c\*\\*" "#,
        ] {
            let parsed = membership_filter(filter, "member_username").unwrap();
            assert_eq!(parsed, all, "{filter}");
        }
        let exactly = name_filter(r#"username="olivia""#, "username").unwrap();
        assert_eq!(exactly, NameMatch::Exactly("olivia".to_owned()));
        for filter in ["", "  "] {
            let parsed = membership_filter(filter, "member_username").unwrap();
            assert_eq!(parsed, MembershipFilter::default());
        }
    }

    #[test]
    fn other_filters_are_invalid() {
        for filter in [
            "role",
            "role =",
            "role = OWNER",
            "role = ROLE_UNSPECIFIED",
            r#"role = "ROLE_OWNER""#,
            "role != ROLE_OWNER",
            "role = ROLE_OWNER OR state = STATE_ACTIVE",
            "role = ROLE_OWNER role = ROLE_ADMIN",
            "role = ROLE_OWNER AND role = ROLE_ADMIN",
            "role = ROLE_OWNER AND",
            "role = ROLE_OWNER ANDstate = STATE_ACTIVE",
            "NOT role = ROLE_OWNER",
            r#"member_username = "a"AND role = ROLE_OWNER"#,
            "(role = ROLE_OWNER)",
            "state = STATE_UNSPECIFIED",
            "email = \"a\"",
            "member_username = michael",
            r#"member_username = "mi*chael""#,
            r#"member_username = "*mi""#,
            r#"member_username = "mi"#,
            r#"member_username = "mi\x""#,
            r#"member_username = "mi\"#,
            "olivia",
            "=",
            "é",
            &format!("member_username = \"{}\"", "x".repeat(MAX_FILTER_BYTES)),
        ] {
            let status = membership_filter(filter, "member_username").unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{filter}");
        }
    }
}
