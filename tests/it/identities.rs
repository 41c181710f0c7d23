//! Users and organizations are looked up by uid and by external id. An external id belongs to one
//! user and to one organization.

use account_service::proto::account_v1::{self as pb};
use prost_types::FieldMask;
use tonic::{Code, Status};

use crate::harness::{Replica, assert_refused, start};

const OLIVIA: &str = "oliviaowner";
const MICHAEL: &str = "membermichael";
const ORG: &str = "olivia-org";
const OTHER_ORG: &str = "other-org";
const ID: &str = "00u1A#b/c";

const NOT_FOUND: &str = "EXTERNAL_ID_NOT_FOUND";
const TAKEN: &str = "EXTERNAL_ID_ALREADY_EXISTS";

/// Creates a user or an organization with an external id, or changes or looks up its external id.
#[derive(Debug, Clone, Copy)]
enum Kind {
    User,
    Organization,
}

impl Kind {
    /// Two names.
    fn names(self) -> [&'static str; 2] {
        match self {
            Self::User => [OLIVIA, MICHAEL],
            Self::Organization => [ORG, OTHER_ORG],
        }
    }

    async fn create(self, service: &Replica, name: &str, id: &str) -> Result<String, Status> {
        let mut client = service.client.clone();
        let external_id = id.to_owned();
        match self {
            Self::User => {
                let request = pb::CreateUserRequest {
                    username: name.to_owned(),
                    external_id,
                    ..pb::CreateUserRequest::default()
                };
                let created = client.create_user(request).await?.into_inner();
                Ok(created.user.unwrap().uid)
            }
            Self::Organization => {
                let request = pb::CreateOrganizationRequest {
                    organization_name: name.to_owned(),
                    founding_user: "founder".to_owned(),
                    external_id,
                    ..pb::CreateOrganizationRequest::default()
                };
                let created = client.create_organization(request).await?.into_inner();
                Ok(created.organization.unwrap().uid)
            }
        }
    }

    async fn set(self, service: &Replica, name: &str, id: &str) -> Result<(), Status> {
        let mut client = service.client.clone();
        let update_mask = Some(FieldMask {
            paths: vec!["external_id".to_owned()],
        });
        let external_id = id.to_owned();
        match self {
            Self::User => {
                let request = pb::UpdateUserRequest {
                    user: Some(pb::User {
                        username: name.to_owned(),
                        external_id,
                        ..pb::User::default()
                    }),
                    update_mask,
                    ..pb::UpdateUserRequest::default()
                };
                client.update_user(request).await.map(drop)
            }
            Self::Organization => {
                let actor = pb::update_organization_request::Actor::AsPlatform(true);
                set_id_of_organization(service, name, id, actor).await
            }
        }
    }

    async fn delete(self, service: &Replica, name: &str) {
        match self {
            Self::User => drop(service.delete_user(name).await.unwrap()),
            Self::Organization => service.delete_organization(name).await,
        }
    }

    /// The name of the record with an external id.
    async fn by_id(self, service: &Replica, id: &str) -> Result<String, Status> {
        self.look_up(service, id, "").await
    }

    /// The name of the record with a uid.
    async fn by_uid(self, service: &Replica, uid: &str) -> Result<String, Status> {
        self.look_up(service, "", uid).await
    }

    async fn look_up(self, service: &Replica, id: &str, uid: &str) -> Result<String, Status> {
        let mut client = service.client.clone();
        let (external_id, uid) = (id.to_owned(), uid.to_owned());
        match self {
            Self::User => {
                let request = pb::LookupUserRequest {
                    uid,
                    external_id,
                    ..pb::LookupUserRequest::default()
                };
                let found = client.lookup_user(request).await?.into_inner();
                Ok(found.user.unwrap().username)
            }
            Self::Organization => {
                let request = pb::LookupOrganizationRequest {
                    uid,
                    external_id,
                    consistency: None,
                };
                let found = client.lookup_organization(request).await?.into_inner();
                Ok(found.organization.unwrap().organization_name)
            }
        }
    }
}

async fn set_id_of_organization(
    service: &Replica,
    name: &str,
    id: &str,
    actor: pb::update_organization_request::Actor,
) -> Result<(), Status> {
    let request = pb::UpdateOrganizationRequest {
        organization: Some(pb::Organization {
            organization_name: name.to_owned(),
            external_id: id.to_owned(),
            ..pb::Organization::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec!["external_id".to_owned()],
        }),
        actor: Some(actor),
        ..pb::UpdateOrganizationRequest::default()
    };
    let mut client = service.client.clone();
    client.update_organization(request).await.map(drop)
}

#[tokio::test]
async fn an_external_id_belongs_to_one_record_from_its_claim_to_its_release() {
    for kind in [Kind::User, Kind::Organization] {
        let (backends, service) = start().await;
        let replica = backends.replica().await;
        service.create_user("founder").await.unwrap();
        let [one, other] = kind.names();
        kind.create(&service, one, ID).await.unwrap();
        assert_eq!(kind.by_id(&replica, ID).await.unwrap(), one);
        // Case matters.
        let missing = kind.by_id(&replica, &ID.to_lowercase()).await;
        assert_refused(missing, Code::NotFound, NOT_FOUND);
        let taken = kind.create(&replica, other, ID).await;
        assert_refused(taken, Code::AlreadyExists, TAKEN);
        kind.create(&replica, other, "").await.unwrap();
        let taken = kind.set(&replica, other, ID).await;
        assert_refused(taken, Code::AlreadyExists, TAKEN);
        // Kept: it is its own.
        kind.set(&replica, one, ID).await.unwrap();

        kind.set(&service, one, "another").await.unwrap();
        let missing = kind.by_id(&replica, ID).await;
        assert_refused(missing, Code::NotFound, NOT_FOUND);
        assert_eq!(kind.by_id(&replica, "another").await.unwrap(), one);
        kind.set(&replica, other, ID).await.unwrap();
        assert_eq!(kind.by_id(&service, ID).await.unwrap(), other);
        kind.set(&replica, other, "").await.unwrap();
        let missing = kind.by_id(&service, ID).await;
        assert_refused(missing, Code::NotFound, NOT_FOUND);

        kind.delete(&service, one).await;
        let missing = kind.by_id(&replica, "another").await;
        assert_refused(missing, Code::NotFound, NOT_FOUND);
        kind.set(&replica, other, "another").await.unwrap();
        assert_eq!(kind.by_id(&replica, "another").await.unwrap(), other);
    }
}

#[tokio::test]
async fn one_of_many_concurrent_claims_of_an_external_id_succeeds() {
    for kind in [Kind::User, Kind::Organization] {
        let (_backends, service) = start().await;
        service.create_user("founder").await.unwrap();
        let names: Vec<_> = (0..8).map(|number| format!("name-{number}")).collect();
        let claims = names.iter().map(|name| kind.create(&service, name, ID));
        let claims = futures_util::future::join_all(claims).await;
        let succeeded: Vec<_> = names
            .iter()
            .zip(&claims)
            .filter(|(_, claim)| claim.is_ok())
            .collect();
        let [(winner, _)] = succeeded[..] else {
            panic!("{claims:?}");
        };
        assert_eq!(&kind.by_id(&service, ID).await.unwrap(), winner);
    }
}

#[tokio::test]
async fn a_uid_finds_its_incarnation_and_no_later_one() {
    for kind in [Kind::User, Kind::Organization] {
        let (backends, service) = start().await;
        let replica = backends.replica().await;
        service.create_user("founder").await.unwrap();
        let [name, _] = kind.names();
        let uid = kind.create(&service, name, "").await.unwrap();
        assert_eq!(kind.by_uid(&replica, &uid).await.unwrap(), name);
        kind.delete(&service, name).await;
        let again = kind.create(&service, name, "").await.unwrap();
        assert_ne!(uid, again);
        let missing = kind.by_uid(&replica, &uid).await;
        assert_refused(missing, Code::NotFound, "UID_NOT_FOUND");
        assert_eq!(kind.by_uid(&replica, &again).await.unwrap(), name);
        // The uid of a user is not one of an organization.
        let other = match kind {
            Kind::User => Kind::Organization,
            Kind::Organization => Kind::User,
        };
        let missing = other.by_uid(&replica, &again).await;
        assert_refused(missing, Code::NotFound, "UID_NOT_FOUND");
    }
}

#[tokio::test]
async fn a_look_up_has_exactly_one_valid_identity() {
    let (_backends, service) = start().await;
    let long = "x".repeat(257);
    for kind in [Kind::User, Kind::Organization] {
        for (id, uid) in [
            ("", ""),
            ("id", "uid"),
            ("a\nb", ""),
            ("", "a\u{0}"),
            (&long, ""),
            ("", &long),
        ] {
            let refused = kind.look_up(&service, id, uid).await;
            assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
        }
        let refused = kind.create(&service, "name", &long).await;
        assert_refused(refused, Code::InvalidArgument, "INVALID_FIELD");
    }
}

#[tokio::test]
async fn members_do_not_change_the_external_id_of_their_organization() {
    let (_backends, service) = start().await;
    service.found_olivia_org().await;
    let as_olivia = || pb::update_organization_request::Actor::ActingUser(OLIVIA.to_owned());
    let refused = set_id_of_organization(&service, ORG, ID, as_olivia()).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    Kind::Organization.set(&service, ORG, ID).await.unwrap();
    // The same value is no change.
    set_id_of_organization(&service, ORG, ID, as_olivia())
        .await
        .unwrap();
    let refused = set_id_of_organization(&service, ORG, "", as_olivia()).await;
    assert_refused(refused, Code::PermissionDenied, "NOT_PERMITTED");
    assert_eq!(Kind::Organization.by_id(&service, ID).await.unwrap(), ORG);
}

#[tokio::test]
async fn an_update_of_all_fields_keeps_the_external_id_unless_it_is_named() {
    let (_backends, service) = start().await;
    Kind::User.create(&service, OLIVIA, ID).await.unwrap();
    let update = |paths: &[&str]| pb::UpdateUserRequest {
        user: Some(pb::User {
            username: OLIVIA.to_owned(),
            first_name: "Olivia".to_owned(),
            ..pb::User::default()
        }),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..pb::UpdateUserRequest::default()
    };
    let mut client = service.client.clone();
    client.update_user(update(&["*"])).await.unwrap();
    assert_eq!(Kind::User.by_id(&service, ID).await.unwrap(), OLIVIA);
    client
        .update_user(update(&["*", "external_id"]))
        .await
        .unwrap();
    let missing = Kind::User.by_id(&service, ID).await;
    assert_refused(missing, Code::NotFound, NOT_FOUND);
}
