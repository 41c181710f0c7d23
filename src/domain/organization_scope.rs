//! The organizations that a caller may read and change.

use std::sync::Arc;

use super::{Labels, NameMatch, Organization, OrganizationName, Record};

/// The organizations that a caller may read and change, with their memberships.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum OrganizationScope {
    /// Every organization.
    #[default]
    Every,
    /// The organizations that at least one rule matches.
    AnyOf(Arc<[OrganizationRule]>),
}

/// A rule that matches organizations. Both parts have to match.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrganizationRule {
    /// The names.
    pub name: NameMatch,
    /// Labels that the organization must have.
    pub labels: Labels,
}

/// Whether an organization is in a scope, judged by its name alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InScope {
    /// Yes, with any labels.
    Yes,
    /// No, with any labels.
    No,
    /// It depends on its labels.
    ByLabels,
}

impl OrganizationScope {
    /// Whether a record is an organization of the scope.
    #[must_use]
    pub fn has_record(&self, record: &Record) -> bool {
        match record {
            Record::Organization(organization) => self.has(organization),
            Record::User(_) | Record::Membership(_) => false,
        }
    }

    /// Whether the scope has every organization.
    #[must_use]
    pub fn is_every(&self) -> bool {
        matches!(self, Self::Every)
    }

    /// Judges an organization by its name.
    #[must_use]
    pub fn judge_name(&self, name: &OrganizationName) -> InScope {
        let rules = match self {
            Self::Every => return InScope::Yes,
            Self::AnyOf(rules) => rules,
        };
        let mut matching = rules
            .iter()
            .filter(|rule| rule.name.matches(name.as_str()))
            .peekable();
        if matching.peek().is_none() {
            InScope::No
        } else if matching.any(|rule| rule.labels.is_empty()) {
            InScope::Yes
        } else {
            InScope::ByLabels
        }
    }

    /// Whether an organization is in the scope.
    #[must_use]
    pub fn has(&self, organization: &Organization) -> bool {
        self.has_labelled(&organization.organization_name, &organization.labels)
    }

    /// Whether an organization with this name and these labels is in the scope.
    #[must_use]
    pub fn has_labelled(&self, name: &OrganizationName, labels: &Labels) -> bool {
        match self {
            Self::Every => true,
            Self::AnyOf(rules) => rules
                .iter()
                .any(|rule| rule.name.matches(name.as_str()) && labels.has_all_of(&rule.labels)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{FreeText, Stamp, State};

    fn labels(labels: &[(&str, &str)]) -> Labels {
        Labels::parse(labels.iter().copied(), FreeText::parse_new).unwrap()
    }

    fn organization(name: &str, region: &str) -> Organization {
        Organization {
            organization_name: OrganizationName::parse_new(name).unwrap(),
            founding_user: String::new(),
            display_name: FreeText::default(),
            external_id: None,
            labels: labels(&[("region", region), ("tier", "1")]),
            state: State::Active,
            deletion: None,
            uid: None,
            stamp: Stamp::default(),
        }
    }

    #[test]
    fn an_organization_is_in_a_scope_by_its_name_and_its_labels() {
        let rule = |name, of: &[(&str, &str)]| OrganizationRule {
            name,
            labels: labels(of),
        };
        let prefix = || NameMatch::Prefix("eu-".to_owned());
        let scope = OrganizationScope::AnyOf(Arc::new([
            rule(NameMatch::Exactly("acme".to_owned()), &[]),
            rule(prefix(), &[("region", "eu"), ("tier", "1")]),
            rule(prefix(), &[("region", "any")]),
        ]));
        for (name, region, by_name, is_in) in [
            ("acme", "us", InScope::Yes, true),
            ("acme-2", "eu", InScope::No, false),
            ("eu-1", "eu", InScope::ByLabels, true),
            ("eu-1", "any", InScope::ByLabels, true),
            ("eu-1", "us", InScope::ByLabels, false),
        ] {
            let organization = organization(name, region);
            assert_eq!(scope.judge_name(&organization.organization_name), by_name);
            assert_eq!(scope.has(&organization), is_in, "{name} in {region}");
            assert!(OrganizationScope::Every.has(&organization));
        }
    }
}
