//! Tests of the policy.

use serde_json::json;

use super::*;

fn methods() -> Vec<Method> {
    let method = |name: &str, is_of_platform| Method {
        name: name.to_owned(),
        is_of_platform,
    };
    vec![method("CheckMembership", false), method("CreateUser", true)]
}

fn parse(policy: &str) -> Result<Policy, PolicyError> {
    Policy::parse(policy, &methods())
}

fn holder(policy: &Policy, claims: &Value) -> String {
    match policy.of_token(claims.as_object().unwrap()) {
        Some(Holder::Service(service)) => service.name.to_string(),
        Some(Holder::User(_)) => "a user".to_owned(),
        Some(Holder::Unknown) => "nobody".to_owned(),
        None => "several".to_owned(),
    }
}

#[test]
fn a_policy_grants_the_methods_that_it_lists_and_nothing_else() {
    let policy = r#"{"callers": {
        "billing": {"certificate": "spiffe://x/billing", "methods": ["CheckMembership"]},
        "console": {"certificate": "console.example", "methods": ["*"], "acts_for_users": true}},
        "users": {"token": {}, "methods": ["CheckMembership"]}}"#;
    let policy = parse(&format!("\u{feff}{policy}")).unwrap();
    let billing = policy.of_certificate("spiffe://x/billing").unwrap();
    assert_eq!(&*billing.name, "billing");
    assert!(billing.grant.has_method("CheckMembership"));
    assert!(!billing.grant.has_method("CreateUser"));
    assert!(!billing.grant.acts_for_users);
    let console = policy.of_certificate("console.example").unwrap();
    assert!(console.grant.has_method("CreateUser") && console.grant.acts_for_users);
    assert!(!console.grant.acts_as_platform);
    assert!(policy.of_certificate("billing").is_none());
    let Some(Holder::User(users)) = policy.of_token(&Map::new()) else {
        panic!("no user");
    };
    assert!(!users.has_method("CreateUser"));
}

#[test]
fn a_token_belongs_to_the_caller_whose_claims_it_has_or_else_to_a_user() {
    let policy = r#"{"callers": {
        "billing": {"token": {"client_id": "billing"}, "methods": ["*"]},
        "nightly": {"token": {"roles": "nightly", "level": 3}, "methods": ["*"]}},
        "users": {"token": {"token_use": "id"}, "methods": []}}"#;
    let policy = parse(policy).unwrap();
    for (claims, expected) in [
        (json!({"client_id": "billing"}), "billing"),
        (json!({"client_id": "billing", "sub": "anybody"}), "billing"),
        (json!({"sub": "billing"}), "nobody"),
        (json!({"sub": "billing", "token_use": "id"}), "a user"),
        (
            json!({"roles": ["daily", "nightly"], "level": 3}),
            "nightly",
        ),
        (json!({"roles": "nightly", "level": "3"}), "nobody"),
        (
            json!({"roles": "nightly", "level": 3, "client_id": "billing"}),
            "several",
        ),
    ] {
        assert_eq!(holder(&policy, &claims), expected, "{claims}");
    }
    // Without a rule for users, no token is a user's.
    let policy = r#"{"callers": {"a": {"token": {"client_id": "a"}, "methods": ["*"]}}}"#;
    assert_eq!(
        holder(&parse(policy).unwrap(), &json!({"sub": "a"})),
        "nobody"
    );
}

#[test]
fn organizations_that_cannot_be_meant_are_rejected() {
    for (organizations, mistake) in [
        ("[]", "the list is empty"),
        ("null", "invalid type: null"),
        ("[{}]", r#"needs a "name""#),
        (r#"[{"name": "a", "prefix": "b"}]"#, "exclude each other"),
        (r#"[{"prefix": ""}]"#, "organizations"),
        (
            r#"[{"prefix": null, "labels": {"a": "b"}}]"#,
            "invalid type: null",
        ),
        (r#"[{"labels": {"Region": "eu"}}]"#, r#"key "Region""#),
        (r#"[{"name": "a", "names": []}]"#, "unknown field"),
    ] {
        let policy = format!(
            r#"{{"callers": {{"a": {{"certificate": "a", "methods": [], "organizations": {organizations}}}}}}}"#
        );
        let error = parse(&policy).unwrap_err().to_string();
        assert!(error.contains(mistake), "{organizations}: {error}");
    }
}

#[test]
fn a_policy_with_a_mistake_is_rejected_and_the_error_names_the_mistake() {
    for (policy, mistake) in [
        ("", "it is not a policy"),
        (r#"{"callers": {}}"#, "grants nothing"),
        (
            r#"{"callers": {"a": {"certificate": "a", "methods": ["Check"]}}}"#,
            "no method",
        ),
        (r#"{"callers": {"a": {"method": ["*"]}}}"#, "unknown field"),
        (r#"{"caller": {}}"#, "unknown field"),
        (
            r#"{"users": {"methods": [], "acts_for_users": true}}"#,
            "unknown field",
        ),
        (
            r#"{"callers": {"a": {"methods": ["*"]}}}"#,
            r#"add "certificate": "a""#,
        ),
        (r#"{"users": {"methods": []}}"#, r#"add "token": {}"#),
        (
            r#"{"callers": {"a": {"token": {"sub": "a"}, "methods": ["*"]}}}"#,
            "a user's token has as well",
        ),
        (
            r#"{"callers": {"a": {"token": {}, "methods": ["*"]}}}"#,
            "a user's token has as well",
        ),
        (
            r#"{"callers": {"a": {"token": {"x": null}, "methods": ["*"]}}}"#,
            "must be a string",
        ),
        (
            r#"{"callers": {"a": {"certificate": "a", "methods": []}, "a": {"certificate": "b", "methods": []}}}"#,
            "twice",
        ),
        (
            r#"{"callers": {"a": {"certificate": "x", "methods": []}, "b": {"certificate": "x", "methods": []}}}"#,
            "the same credentials",
        ),
        (
            r#"{"callers": {"a": {"token": {"x": 1}, "methods": []}, "b": {"token": {"x": 1}, "methods": []}}}"#,
            "the same credentials",
        ),
        (
            r#"{"callers": {"": {"certificate": "a", "methods": []}}}"#,
            "it is empty",
        ),
        (
            r#"{"callers": {"a ": {"certificate": "a", "methods": []}}}"#,
            "a blank",
        ),
        (
            r#"{"callers": {"a": {"certificate": "a\t", "methods": []}}}"#,
            "a blank",
        ),
        (
            r#"{"callers": {"*": {"certificate": "a", "methods": []}}}"#,
            "wildcards are not supported",
        ),
        (
            r#"{"callers": {"a\u0000b": {"certificate": "a", "methods": []}}}"#,
            "a control character",
        ),
        (
            r#"{"users": {"token": {}, "methods": ["*"]}}"#,
            "could change all others",
        ),
        (
            r#"{"users": {"token": {}, "methods": ["CreateUser"]}}"#,
            "could change all others",
        ),
    ] {
        let error = parse(policy).unwrap_err().to_string();
        assert!(error.contains(mistake), "{policy}: {error}");
    }
}
