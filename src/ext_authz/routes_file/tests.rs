use std::collections::HashMap;

use super::*;
use crate::{
    domain::Labels,
    ext_authz::{Denial, RequestAttributes, Subject},
    service::CheckResult,
};

const FILE: &str = r#"{
    "identity_headers": {"user": "X-User"},
    "routes": {
        "notes": {
            "subject": {"jwt_authn": {"payload": "jwt", "claim": "sub"}},
            "organization": {"path": "/organizations/{organization}/**"},
            "minimum_role": "ROLE_ADMIN",
            "statuses": {"not_a_member": 404},
            "max_staleness_ms": 500,
            "dry_run": true
        },
        "tenants": {
            "subject": {"certificate": "spiffe://example.org/users/{user}"},
            "organization": {"host": "{organization}.Example.com"},
            "minimum_role": "ROLE_MEMBER"
        },
        "staff": {
            "subject": {"header": "X-Staff"},
            "organization": {"name": "acme"},
            "minimum_role": "ROLE_OWNER"
        },
        "own": {
            "subject": {"token": {}},
            "organization": {"header": "X-Organization"},
            "minimum_role": "ROLE_MEMBER"
        }
    }
}"#;

#[derive(Default)]
struct Fields {
    path: &'static str,
    host: &'static str,
    headers: HashMap<&'static str, &'static str>,
    principal: &'static str,
    subject: Option<&'static str>,
}

impl RequestAttributes for Fields {
    fn path(&self) -> &str {
        self.path
    }

    fn host(&self) -> &str {
        self.host
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).copied()
    }

    fn principal(&self) -> &str {
        self.principal
    }

    fn claim(&self, payload: &str, claim: &str) -> Option<&str> {
        self.subject.filter(|_| (payload, claim) == ("jwt", "sub"))
    }
}

fn routes() -> Routes {
    Routes::parse(FILE, true).unwrap()
}

fn subject(route: &str, request: &Fields) -> Result<String, Denial> {
    let subject = routes().route(route).unwrap().subject(request)?;
    Ok(match subject {
        Subject::User(name) => name.as_str().to_owned(),
        Subject::Token(token) => format!("token {token}"),
    })
}

fn organization(route: &str, request: &Fields) -> Result<String, Denial> {
    let name = routes().route(route).unwrap().organization(request)?;
    Ok(name.as_str().to_owned())
}

#[test]
fn the_subject_comes_from_the_configured_source_alone() {
    let everywhere = Fields {
        headers: [("x-staff", "hannah"), ("authorization", "bearer  abc")].into(),
        principal: "spiffe://example.org/users/carol",
        subject: Some("olivia"),
        ..Fields::default()
    };
    for (route, expected) in [
        ("notes", "olivia"),
        ("tenants", "carol"),
        ("staff", "hannah"),
        ("own", "token abc"),
    ] {
        let found = subject(route, &everywhere);
        assert_eq!(found.as_deref(), Ok(expected), "{route}");
        let missing = subject(route, &Fields::default());
        assert_eq!(missing, Err(Denial::NoSubject), "{route}");
    }
}

#[test]
fn a_subject_that_is_no_name_is_not_valid() {
    let control = Fields {
        subject: Some("a\nb"),
        ..Fields::default()
    };
    assert_eq!(subject("notes", &control), Err(Denial::InvalidSubject));
    let other_domain = Fields {
        principal: "spiffe://elsewhere.example/users/carol",
        ..Fields::default()
    };
    assert_eq!(
        subject("tenants", &other_domain),
        Err(Denial::InvalidSubject)
    );
    let basic = Fields {
        headers: [("authorization", "Basic abc")].into(),
        ..Fields::default()
    };
    assert_eq!(subject("own", &basic), Err(Denial::NoSubject));
}

#[test]
fn the_organization_comes_from_the_configured_source_alone() {
    let everywhere = Fields {
        path: "/organizations/one/notes",
        host: "Two.example.com:8443",
        headers: [("x-organization", "three")].into(),
        ..Fields::default()
    };
    for (route, expected) in [
        ("notes", "one"),
        ("tenants", "two"),
        ("own", "three"),
        ("staff", "acme"),
    ] {
        let found = organization(route, &everywhere);
        assert_eq!(found.as_deref(), Ok(expected), "{route}");
    }
    for route in ["notes", "tenants", "own"] {
        let missing = organization(route, &Fields::default());
        assert_eq!(missing, Err(Denial::NoOrganization), "{route}");
    }
}

#[test]
fn a_role_suffices_from_the_least_one_on() {
    let routes = routes();
    let route = routes.route("notes").unwrap();
    let judged = |role| {
        route.judge(&CheckResult {
            role,
            is_satisfied: false,
            expire_time: None,
            labels: Labels::default(),
        })
    };
    assert_eq!(judged(Some(Role::Owner)), Ok(Role::Owner));
    assert_eq!(judged(Some(Role::Admin)), Ok(Role::Admin));
    assert_eq!(judged(Some(Role::Member)), Err(Denial::RoleTooLow));
    assert_eq!(judged(None), Err(Denial::NotMember));
}

#[test]
fn a_file_sets_headers_statuses_and_freshness_or_gets_the_defaults() {
    let routes = routes();
    assert_eq!(routes.headers().user, "x-user");
    assert_eq!(routes.headers().role, "x-account-role");
    let (notes, staff) = (
        routes.route("notes").unwrap(),
        routes.route("staff").unwrap(),
    );
    assert_eq!(
        notes.freshness,
        Freshness::Within(Duration::from_millis(500))
    );
    assert_eq!(staff.freshness, Freshness::Coherent);
    assert!(notes.is_dry_run && !staff.is_dry_run);
    for denial in Denial::ALL {
        let [of_notes, of_staff] = [notes, staff].map(|route| route.status(*denial));
        let expected = match denial {
            Denial::NoSubject | Denial::InvalidSubject => (401, 401),
            Denial::NotMember | Denial::NoOrganization | Denial::NotGranted => (404, 403),
            Denial::RoleTooLow | Denial::UnknownRoute => (403, 403),
        };
        assert_eq!((of_notes, of_staff), expected, "{denial:?}");
    }
}

#[test]
fn a_file_that_is_not_valid_is_rejected_with_its_field() {
    let route = |subject: &str, organization: &str, rest: &str| {
        format!(
            r#"{{"routes": {{"r": {{"subject": {subject}, "organization": {organization},
            "minimum_role": "ROLE_MEMBER"{rest}}}}}}}"#
        )
    };
    let (subject, organization) = (r#"{"header": "x-user"}"#, r#"{"name": "acme"}"#);
    assert!(Routes::parse(&route(subject, organization, ""), false).is_ok());
    for (file, error) in [
        ("{}".to_owned(), "missing field `routes`"),
        (r#"{"routes": {}}"#.to_owned(), "it has no routes"),
        (
            r#"{"routes": {"r": {}, "r": {}}}"#.to_owned(),
            "missing field `subject`",
        ),
        (
            route(r#"{"header": "a b"}"#, organization, ""),
            "subject.header of route \"r\" must be the name of a header",
        ),
        (
            route(r#"{"token": {}}"#, organization, ""),
            "subject.token of route \"r\" needs --jwks",
        ),
        (
            route(r#"{"certificate": "spiffe://x/y"}"#, organization, ""),
            "subject.certificate of route \"r\" must have {user} exactly once",
        ),
        (
            route(r#"{"jwt_authn": {"payload": "", "claim": "sub"}}"#, organization, ""),
            "subject.jwt_authn.payload of route \"r\" must not be empty",
        ),
        (
            route(subject, r#"{"path": "/x"}"#, ""),
            "organization.path of route \"r\" must have {organization} exactly once",
        ),
        (
            route(subject, organization, r#", "statuses": {"no_subject": 200}"#),
            "statuses.no_subject of route \"r\" must be 401, 403 or 404",
        ),
        (
            route(subject, organization, r#", "max_staleness_ms": 99999999"#),
            "max_staleness_ms of route \"r\" must be at most",
        ),
        (
            route(subject, organization, r#", "dryrun": true"#),
            "unknown field `dryrun`",
        ),
        (
            r#"{"identity_headers": {"user": "x-account-role"}, "routes": {"r":
            {"subject": {"header": "x"}, "organization": {"name": "acme"}, "minimum_role": "ROLE_MEMBER"}}}"#
                .to_owned(),
            "identity_headers.role and the others must be different headers",
        ),
    ] {
        let rejected = Routes::parse(&file, false).unwrap_err().to_string();
        assert!(rejected.contains(error), "{rejected}");
    }
}
