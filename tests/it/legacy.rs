//! A table that the tutorial's service filled is served as it is.

use account_service::{proto::account_v1::Role, setup};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    StreamViewType,
};
use tonic::Code;

use crate::harness::{Backends, Table, assert_refused, script::error_body, start};

const ORG: &str = "olivia-org";

/// Items exactly as the tutorial writes them.
async fn fill(table: &Table) {
    for (username, first_name, last_name) in [
        ("oliviaowner", "Olivia", "Smith"),
        ("membermichael", "Michael", "Scott"),
        ("Odd_Name@x", "Odd", "Name"),
    ] {
        let key = format!("USER#{username}");
        table
            .put(&[
                ("PK", &key),
                ("SK", &key),
                ("username", username),
                ("firstName", first_name),
                ("lastName", last_name),
            ])
            .await;
    }
    table
        .put(&[
            ("PK", "ORG#olivia-org"),
            ("SK", "ORG#olivia-org"),
            ("organizationName", "olivia-org"),
            ("foundingUser", "oliviaowner"),
        ])
        .await;
    for (member, role) in [("oliviaowner", "Owner"), ("Odd_Name@x", "Admin")] {
        table
            .put(&[
                ("PK", "ORGMEMBERS#olivia-org"),
                ("SK", &format!("MEMBER#{member}")),
                ("organizationName", "olivia-org"),
                ("memberUsername", member),
                ("role", role),
            ])
            .await;
    }
}

#[tokio::test]
async fn users_organizations_and_memberships_are_read() {
    let (backends, service) = start().await;
    fill(&backends.table()).await;
    for _ in 0..2 {
        let (user, _) = service.get_user("oliviaowner").await.unwrap();
        assert_eq!(
            (user.first_name, user.last_name),
            ("Olivia".into(), "Smith".into())
        );
        assert_eq!((user.uid, user.create_time), (String::new(), None));
        let (organization, _) = service.get_organization(ORG).await.unwrap();
        assert_eq!(organization.founding_user, "oliviaowner");
        let (membership, _) = service.get_membership(ORG, "Odd_Name@x").await.unwrap();
        assert_eq!(membership.role(), Role::Admin);
        assert_eq!(service.role_of(ORG, "oliviaowner").await, Some(Role::Owner));
        assert_eq!(service.role_of(ORG, "membermichael").await, None);
        service.settle().await;
    }
}

#[tokio::test]
async fn members_are_added_changed_and_removed() {
    let (backends, service) = start().await;
    let table = backends.table();
    fill(&table).await;
    service
        .add(ORG, "membermichael", Role::Member, "Odd_Name@x")
        .await
        .unwrap();
    assert_eq!(
        service.role_of(ORG, "membermichael").await,
        Some(Role::Member)
    );
    service
        .change_role(ORG, "Odd_Name@x", Role::Member, "oliviaowner")
        .await
        .unwrap();
    assert_eq!(service.role_of(ORG, "Odd_Name@x").await, Some(Role::Member));
    assert_refused(
        service.remove(ORG, "oliviaowner", "oliviaowner").await,
        Code::FailedPrecondition,
        "LAST_OWNER",
    );
    service
        .change_role(ORG, "membermichael", Role::Owner, "oliviaowner")
        .await
        .unwrap();
    service
        .remove(ORG, "oliviaowner", "oliviaowner")
        .await
        .unwrap();
    assert_eq!(service.role_of(ORG, "oliviaowner").await, None);
    let gone = table
        .attributes_of("ORGMEMBERS#olivia-org", "MEMBER#oliviaowner")
        .await;
    assert_eq!(gone, None);
}

#[tokio::test]
async fn users_are_deleted_and_their_names_inherit_nothing() {
    let (backends, service) = start().await;
    fill(&backends.table()).await;
    assert_eq!(service.role_of(ORG, "Odd_Name@x").await, Some(Role::Admin));
    service.delete_user("Odd_Name@x").await.unwrap();
    assert_eq!(service.role_of(ORG, "Odd_Name@x").await, None);

    service.delete_user("oliviaowner").await.unwrap();
    service.create_user("oliviaowner").await.unwrap();
    assert_eq!(service.role_of(ORG, "oliviaowner").await, None);
    assert_refused(
        service
            .add(ORG, "membermichael", Role::Member, "oliviaowner")
            .await,
        Code::PermissionDenied,
        "NOT_PERMITTED",
    );
}

#[tokio::test]
async fn what_the_service_writes_is_what_the_tutorial_reads() {
    let (backends, service) = start().await;
    let table = backends.table();
    service.found_olivia_org_with_michael().await;
    for (pk, sk, needed) in [
        (
            "USER#oliviaowner",
            "USER#oliviaowner",
            &["username", "firstName", "lastName"][..],
        ),
        (
            "ORG#olivia-org",
            "ORG#olivia-org",
            &["organizationName", "foundingUser"],
        ),
        (
            "ORGMEMBERS#olivia-org",
            "MEMBER#membermichael",
            &["organizationName", "memberUsername", "role"],
        ),
    ] {
        let attributes = table.attributes_of(pk, sk).await.unwrap();
        for name in needed {
            assert!(attributes.iter().any(|has| has == name), "{pk} {name}");
        }
    }
}

#[tokio::test]
async fn an_item_that_is_no_record_is_reported_and_grants_nothing() {
    let (backends, service) = start().await;
    let table = backends.table();
    fill(&table).await;
    table
        .put(&[
            ("PK", "ORGMEMBERS#olivia-org"),
            ("SK", "MEMBER#membermichael"),
            ("role", "Emperor"),
        ])
        .await;
    assert_refused(
        service.check(ORG, "membermichael").await,
        Code::DataLoss,
        "MALFORMED_ITEM",
    );
    assert_eq!(service.role_of(ORG, "oliviaowner").await, Some(Role::Owner));
}

/// DynamoDB Local takes the longer to change an index the more tables it has: these
/// tests come first there.
#[tokio::test]
async fn what_others_write_where_this_service_writes_nothing_is_changed_all_the_same() {
    use aws_sdk_dynamodb::types::AttributeValue;
    let (backends, service) = start().await;
    let text = |text: &str| AttributeValue::S(text.to_owned());
    let zero = || AttributeValue::N("0".to_owned());
    let put = async |attributes: &[(&str, AttributeValue)]| {
        let item = attributes.iter().cloned();
        let item = item.map(|(name, value)| (name.to_owned(), value));
        backends.table().put_item(item.collect()).await;
    };
    for name in ["olivia", "michael"] {
        let key = format!("USER#{name}");
        let (key, none) = (text(&key), text(""));
        let user = [
            ("PK", key.clone()),
            ("SK", key),
            ("state", text("ACTIVE")),
            ("uid", none),
        ];
        put(&[&user[..], &[("ver", zero())]].concat()).await;
    }
    let key = text("ORG#odd-org");
    let organization = [("PK", key.clone()), ("SK", key), ("state", text("ACTIVE"))];
    put(&[&organization[..], &[("uid", text("")), ("ver", zero())]].concat()).await;
    let owner = [
        ("PK", text("ORGMEMBERS#odd-org")),
        ("SK", text("MEMBER#olivia")),
        ("role", text("Owner")),
        ("organizationUid", text("")),
        ("memberUid", text("")),
        ("ver", zero()),
    ];
    put(&owner).await;
    service
        .add("odd-org", "michael", Role::Owner, "olivia")
        .await
        .unwrap();
    let stepped_down = service
        .change_role("odd-org", "olivia", Role::Member, "olivia")
        .await;
    stepped_down.unwrap();
    service
        .remove("odd-org", "olivia", "michael")
        .await
        .unwrap();
    assert_eq!(
        service.role_of("odd-org", "michael").await,
        Some(Role::Owner)
    );
    service.delete_user("olivia").await.unwrap();
}

mod indexes {
    use super::*;

    #[tokio::test]
    async fn setup_adds_the_indexes_and_the_stream_that_a_tutorial_table_lacks() {
        let backends = Backends::start().await;
        let settings = backends.settings_of_another_table().backends;
        let table = backends.table();
        let key = |name: &str, key_type| {
            let key = KeySchemaElement::builder().attribute_name(name);
            key.key_type(key_type).build().unwrap()
        };
        let text = |name: &str| {
            let attribute = AttributeDefinition::builder().attribute_name(name);
            attribute
                .attribute_type(ScalarAttributeType::S)
                .build()
                .unwrap()
        };
        let create = table.client.create_table().table_name(&settings.table_name);
        let create = create
            .billing_mode(BillingMode::PayPerRequest)
            .attribute_definitions(text("PK"))
            .attribute_definitions(text("SK"))
            .key_schema(key("PK", KeyType::Hash))
            .key_schema(key("SK", KeyType::Range));
        create.send().await.unwrap();

        let added = setup::run(&settings, None).await.unwrap();
        assert_eq!(
            added.table,
            "exists; what it lacked of indexes, stream and time to live was added"
        );
        let again = setup::run(&settings, None).await.unwrap();
        assert_eq!(again.table, "exists");
        let describe = table
            .client
            .describe_table()
            .table_name(&settings.table_name);
        let found = describe.send().await.unwrap().table.unwrap();
        assert_eq!(found.global_secondary_indexes().len(), 3);
        let stream = found.stream_specification().unwrap();
        assert_eq!(
            stream.stream_view_type(),
            Some(&StreamViewType::NewAndOldImages)
        );
    }

    #[tokio::test]
    async fn setup_puts_owners_that_others_wrote_into_their_index() {
        let backends = Backends::start().await;
        let settings = backends.serve_settings().backends;
        let table = backends.table();
        let pk = "ORGMEMBERS#tutorial-org";
        for (name, role) in [("olivia", "Owner"), ("michael", "Member")] {
            let sk = format!("MEMBER#{name}");
            table.put(&[("PK", pk), ("SK", &sk), ("role", role)]).await;
        }
        let added = setup::run(&settings, None).await.unwrap();
        assert_eq!(
            added.table,
            "exists; what it lacked of indexes, stream and time to live was added"
        );
        let attributes = table.attributes_of(pk, "MEMBER#olivia").await.unwrap();
        assert_eq!(attributes, ["PK", "SK", "ownerOf", "role"]);
        let attributes = table.attributes_of(pk, "MEMBER#michael").await.unwrap();
        assert_eq!(attributes, ["PK", "SK", "role"]);
        let again = setup::run(&settings, None).await.unwrap();
        assert_eq!(again.table, "exists");
    }

    #[tokio::test]
    async fn an_owner_leaves_though_the_index_of_owners_cannot_be_read_or_is_missing() {
        let (backends, service) = start().await;
        let (olivia, michael) = ("oliviaowner", "membermichael");
        service.found_olivia_org_with_michael().await;
        let owner = service.change_role(ORG, michael, Role::Owner, olivia).await;
        owner.unwrap();
        let denied = error_body("AccessDeniedException");
        let script = &backends.dynamodb;
        script.answer_about("Query", "ownerOf-SK-index", 400, &denied);
        service.remove(ORG, olivia, olivia).await.unwrap();
        script.behave();
        let again = service.add(ORG, olivia, Role::Owner, michael).await;
        again.unwrap();
        backends.table().drop_index("ownerOf-SK-index").await;
        service.remove(ORG, olivia, olivia).await.unwrap();
        let refused = service.remove(ORG, michael, michael).await;
        assert_refused(refused, Code::FailedPrecondition, "LAST_OWNER");
    }
}
