//! Tables for people.

use std::fmt::Write as _;

use serde_json::Value;

/// The columns of a resource: their titles, and the names of their fields in JSON. The first field that
/// is not empty is shown.
type Columns = &'static [(&'static str, &'static [&'static str])];

const USER: Columns = &[
    ("USER", &["username"]),
    ("STATE", &["state"]),
    ("NAME", &["displayName", "firstName"]),
    ("E-MAIL", &["email"]),
    ("CREATED", &["createTime"]),
    ("LABELS", &["labels"]),
];
const ORGANIZATION: Columns = &[
    ("ORGANIZATION", &["organizationName"]),
    ("STATE", &["state"]),
    ("NAME", &["displayName"]),
    ("FOUNDER", &["foundingUser"]),
    ("CREATED", &["createTime"]),
    ("LABELS", &["labels"]),
];
const MEMBERSHIP: Columns = &[
    ("ORGANIZATION", &["organizationName"]),
    ("USER", &["memberUsername"]),
    ("ROLE", &["role"]),
    ("STATE", &["state"]),
    ("SINCE", &["createTime"]),
    ("UNTIL", &["expireTime"]),
    ("LABELS", &["labels"]),
];

/// The resources of a response, by the name of its field, and their columns.
fn columns_of(field: &str) -> Option<Columns> {
    match field {
        "user" | "users" => Some(USER),
        "organization" | "organizations" => Some(ORGANIZATION),
        "membership" | "memberships" => Some(MEMBERSHIP),
        _ => None,
    }
}

/// The name of the field of a response, in JSON, that has the resource or the resources.
pub fn field_of(response: &Value) -> Option<&str> {
    let mut fields = response.as_object()?.keys();
    fields
        .find(|name| columns_of(name).is_some())
        .map(String::as_str)
}

/// A table of resources, which the field of this name has.
pub fn table(field: &str, resources: &[Value]) -> String {
    let columns = columns_of(field).unwrap_or_default();
    let mut rows = vec![
        columns
            .iter()
            .map(|(title, _)| (*title).to_owned())
            .collect(),
    ];
    rows.extend(resources.iter().map(|resource| {
        let cell = |(_, fields): &(_, &[&str])| {
            let mut texts = fields.iter().filter_map(|field| text(resource.get(field)?));
            texts.next().unwrap_or_else(|| "-".to_owned())
        };
        columns.iter().map(cell).collect::<Vec<String>>()
    }));
    let width = |column: usize| {
        let widths = rows
            .iter()
            .map(|row: &Vec<String>| row[column].chars().count());
        widths.max().unwrap_or_default()
    };
    let widths: Vec<_> = (0..columns.len()).map(width).collect();
    let mut lines = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Fails never: the line is in memory.
            let _ = write!(line, "{cell:width$}  ");
        }
        lines.push_str(line.trim_end());
        lines.push('\n');
    }
    lines
}

/// The text of a value. `None`: it is empty.
fn text(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => {
            let name = ["STATE_", "ROLE_"];
            let name = name
                .into_iter()
                .find_map(|prefix| text.strip_prefix(prefix));
            name.map_or_else(|| printable(text), str::to_lowercase)
        }
        Value::Object(labels) => {
            let labels = labels.iter().map(|(key, value)| {
                let value = value.as_str().unwrap_or_default();
                printable(&format!("{key}={value}"))
            });
            labels.collect::<Vec<_>>().join(",")
        }
        Value::Null => String::new(),
        other => other.to_string(),
    };
    (!text.is_empty()).then_some(text)
}

/// The text without characters that a terminal would obey.
pub fn printable(text: &str) -> String {
    let shown = |it: char| if it.is_control() { '\u{fffd}' } else { it };
    text.chars().map(shown).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_aligns_its_columns_and_shows_no_control_characters() {
        let members = [
            json!({"organizationName": "acme", "memberUsername": "olivia", "role": "ROLE_OWNER", "state": "STATE_ACTIVE"}),
            json!({"organizationName": "a\u{1b}[2Jb", "memberUsername": "mike", "role": "ROLE_MEMBER",
                "state": "STATE_SUSPENDED", "labels": {"job": "nurse", "b": "c"}}),
        ];
        let expected = "\
            ORGANIZATION  USER    ROLE    STATE      SINCE  UNTIL  LABELS\n\
            acme          olivia  owner   active     -      -      -\n\
            a\u{fffd}[2Jb        mike    member  suspended  -      -      b=c,job=nurse\n";
        assert_eq!(table("memberships", &members), expected);
    }
}
