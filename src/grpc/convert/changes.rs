//! Converts WatchChanges requests to domain types, and changes to messages.

use tonic::Status;

use super::{
    organization, organization_name,
    replies::{membership_alone, timestamp},
    user, username,
};
use crate::{
    domain::{Actor, ChangeKind, Key, OrganizationScope, Record, RecordChange},
    grpc::status,
    proto::account_v1 as pb,
    service::{ChangeBatch, ChangeFilter, Cursor, Start},
};

pub(in crate::grpc) fn watch(
    request: &pb::WatchChangesRequest,
    scope: OrganizationScope,
) -> Result<(Start, ChangeFilter), Status> {
    let start = match &request.start {
        Some(pb::watch_changes_request::Start::Cursor(cursor)) if !cursor.is_empty() => {
            let cursor = cursor.parse::<Cursor>();
            let cursor =
                cursor.map_err(|error| status::invalid_field("cursor", error.to_string()))?;
            Start::After(cursor)
        }
        Some(pb::watch_changes_request::Start::Oldest(true)) => Start::Oldest,
        Some(
            pb::watch_changes_request::Start::Oldest(false)
            | pb::watch_changes_request::Start::Cursor(_),
        )
        | None => Start::Now,
    };
    let given = |name: &str| !name.is_empty();
    let organization = given(&request.organization_name)
        .then(|| organization_name("organization_name", &request.organization_name));
    let user = given(&request.username).then(|| username("username", &request.username));
    let filter = ChangeFilter {
        organization: organization.transpose()?,
        user: user.transpose()?,
        scope,
    };
    Ok((start, filter))
}

pub(in crate::grpc) fn changes(changed: &ChangeBatch) -> pb::WatchChangesResponse {
    let batch = changed.changes.iter();
    pb::WatchChangesResponse {
        changes: batch.map(|(it, cursor)| change(it, cursor)).collect(),
        cursor: changed.cursor.to_string(),
    }
}

fn change(change: &RecordChange, cursor: &Cursor) -> pb::Change {
    use pb::change::{Actor as WireActor, Resource};
    let images = [&change.before, &change.after];
    let resource = match &change.key {
        Key::User(username) => {
            let image = |record: &Option<Record>| match record {
                Some(Record::User(it)) => Some(user(it)),
                _ => None,
            };
            let [before, after] = images.map(image);
            Resource::User(pb::UserChange {
                username: username.to_string(),
                before,
                after,
            })
        }
        Key::Organization(name) => {
            let image = |record: &Option<Record>| match record {
                Some(Record::Organization(it)) => Some(organization(it)),
                _ => None,
            };
            let [before, after] = images.map(image);
            Resource::Organization(pb::OrganizationChange {
                organization_name: name.to_string(),
                before,
                after,
            })
        }
        Key::Membership(organization, member) => {
            let image = |record: &Option<Record>| match record {
                Some(Record::Membership(it)) => Some(membership_alone(it)),
                _ => None,
            };
            let [before, after] = images.map(image);
            Resource::Membership(pb::MembershipChange {
                organization_name: organization.to_string(),
                member_username: member.to_string(),
                before,
                after,
            })
        }
    };
    let kind = match change.kind {
        ChangeKind::Created => pb::ChangeKind::Created,
        ChangeKind::Updated => pb::ChangeKind::Updated,
        ChangeKind::Deleted => pb::ChangeKind::Deleted,
        ChangeKind::Expired => pb::ChangeKind::Expired,
    };
    let made = change.made.as_ref();
    let request_id = made.and_then(|made| made.origin.request_id.as_ref());
    let caller = made.and_then(|made| made.origin.caller.as_ref());
    pb::Change {
        kind: kind.into(),
        resource: Some(resource),
        commit_time: change.time.map(timestamp),
        change_id: made.map_or_else(String::new, |made| made.change_id.clone()),
        actor: made.map(|made| match &made.origin.actor {
            Actor::User(username) => WireActor::ActingUser(username.to_string()),
            Actor::Platform => WireActor::AsPlatform(true),
        }),
        request_id: request_id.map_or_else(String::new, |id| id.as_str().to_owned()),
        cursor: cursor.to_string(),
        caller: caller.map_or_else(String::new, |caller| caller.as_str().to_owned()),
    }
}
