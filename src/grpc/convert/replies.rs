//! Converts domain types to messages.

use std::collections::BTreeMap;

use prost_types::Timestamp as WireTimestamp;

use super::memberships::VALID_SECONDS;
use crate::{
    domain::{
        Erasure, ErasurePhase, ExpireTime, ExternalId, Labels, Membership, Organization,
        REMAINDERS, Remainder, Role, SoftDeletion, Stamp, Standing, State, Timestamp, Uid, User,
    },
    proto::account_v1 as pb,
    service::{CheckResult, Source},
};

pub(in crate::grpc) fn user(user: &User) -> pb::User {
    let (create_time, update_time) = times(&user.stamp);
    pb::User {
        username: user.username.to_string(),
        first_name: user.first_name.to_string(),
        last_name: user.last_name.to_string(),
        uid: uid(user.uid.as_ref()),
        display_name: user.display_name.to_string(),
        email: user
            .email
            .as_ref()
            .map_or_else(String::new, |email| email.as_str().to_owned()),
        external_id: external_id(user.external_id.as_ref()),
        labels: wire_labels(&user.labels),
        state: profile_state(user.state, user.deletion),
        etag: user.stamp.etag().as_str().to_owned(),
        create_time,
        update_time,
        delete_time: user.deletion.map(|it| timestamp(it.delete_time)),
        purge_time: user.deletion.and_then(purge_time),
    }
}

pub(in crate::grpc) fn organization(organization: &Organization) -> pb::Organization {
    let (create_time, update_time) = times(&organization.stamp);
    pb::Organization {
        organization_name: organization.organization_name.to_string(),
        founding_user: organization.founding_user.clone(),
        uid: uid(organization.uid.as_ref()),
        display_name: organization.display_name.to_string(),
        external_id: external_id(organization.external_id.as_ref()),
        labels: wire_labels(&organization.labels),
        state: profile_state(organization.state, organization.deletion),
        etag: organization.stamp.etag().as_str().to_owned(),
        create_time,
        update_time,
        delete_time: organization.deletion.map(|it| timestamp(it.delete_time)),
        purge_time: organization.deletion.and_then(purge_time),
    }
}

pub(in crate::grpc) fn membership(standing: &Standing) -> pb::Membership {
    pb::Membership {
        state: wire_state(standing.effective_state()),
        ..membership_alone(&standing.membership)
    }
}

/// A membership with its state unspecified.
pub(super) fn membership_alone(membership: &Membership) -> pb::Membership {
    let (create_time, update_time) = times(&membership.stamp);
    pb::Membership {
        organization_name: membership.organization_name.to_string(),
        member_username: membership.member_username.to_string(),
        role: wire_role(membership.role).into(),
        adding_user: membership.adding_user.clone().unwrap_or_default(),
        state: pb::State::Unspecified.into(),
        etag: membership.stamp.etag().as_str().to_owned(),
        create_time,
        update_time,
        expire_time: membership.expire_time.map(expire_time),
        labels: wire_labels(&membership.labels),
    }
}

fn expire_time(ExpireTime(seconds): ExpireTime) -> WireTimestamp {
    WireTimestamp {
        seconds: valid_seconds(seconds),
        nanos: 0,
    }
}

/// The nearest time that a message can have: other writers may have stored any number.
fn valid_seconds(seconds: i64) -> i64 {
    seconds.clamp(*VALID_SECONDS.start(), *VALID_SECONDS.end())
}

pub(in crate::grpc) fn check_result(result: &CheckResult) -> pb::MembershipCheckResult {
    pb::MembershipCheckResult {
        is_member: result.role.is_some(),
        role: wire_role(result.role).into(),
        satisfied: result.is_satisfied,
        expire_time: result.expire_time.map(expire_time),
    }
}

/// The response to a check.
pub(in crate::grpc) fn check_response(
    result: &CheckResult,
    from: Source,
) -> pb::CheckMembershipResponse {
    let pb::MembershipCheckResult {
        is_member,
        role,
        satisfied,
        expire_time,
    } = check_result(result);
    pb::CheckMembershipResponse {
        is_member,
        role,
        satisfied,
        source: source(from).into(),
        expire_time,
        labels: wire_labels(&result.labels),
    }
}

pub(in crate::grpc) fn source(source: Source) -> pb::Source {
    match source {
        Source::Memory => pb::Source::Memory,
        Source::Cache => pb::Source::Cache,
        Source::Store => pb::Source::Store,
    }
}

pub(in crate::grpc) fn wire_role(role: Option<Role>) -> pb::Role {
    match role {
        None => pb::Role::Unspecified,
        Some(Role::Owner) => pb::Role::Owner,
        Some(Role::Admin) => pb::Role::Admin,
        Some(Role::Member) => pb::Role::Member,
    }
}

fn uid(uid: Option<&Uid>) -> String {
    uid.map_or_else(String::new, |uid| uid.as_str().to_owned())
}

fn external_id(id: Option<&ExternalId>) -> String {
    id.map_or_else(String::new, |id| id.as_str().to_owned())
}

fn times(stamp: &Stamp) -> (Option<WireTimestamp>, Option<WireTimestamp>) {
    (
        stamp.create_time.map(timestamp),
        stamp.update_time.map(timestamp),
    )
}

pub(super) fn timestamp(Timestamp(millis): Timestamp) -> WireTimestamp {
    let nanos = millis.rem_euclid(1000) * 1_000_000;
    WireTimestamp {
        seconds: valid_seconds(millis.div_euclid(1000)),
        nanos: i32::try_from(nanos).unwrap_or_default(),
    }
}

fn wire_labels(labels: &Labels) -> BTreeMap<String, String> {
    let labels = labels.iter();
    labels
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

pub(in crate::grpc) fn erasure(erasure: &Erasure) -> pb::Erasure {
    let is_done = erasure.phase == ErasurePhase::Done;
    let done_time = is_done.then_some(erasure.phase_time);
    let remainders = REMAINDERS.map(|Remainder { place, retention }| pb::ErasureRemainder {
        place: place.to_owned(),
        until_time: done_time.map(|done| timestamp(done.after(retention))),
    });
    pb::Erasure {
        erasure_id: erasure.id.to_string(),
        pseudonym: erasure.pseudonym().to_string(),
        create_time: Some(timestamp(erasure.create_time)),
        done_time: done_time.map(timestamp),
        examined_count: wire_count(erasure.examined),
        changed_count: wire_count(erasure.changed),
        remainders: remainders.into(),
    }
}

fn wire_count(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn purge_time(deletion: SoftDeletion) -> Option<WireTimestamp> {
    deletion.purge_time().map(timestamp)
}

/// The state of a user or an organization.
fn profile_state(state: State, deletion: Option<SoftDeletion>) -> i32 {
    match deletion {
        Some(_) => pb::State::Deleted.into(),
        None => wire_state(state),
    }
}

fn wire_state(state: State) -> i32 {
    match state {
        State::Active => pb::State::Active,
        State::Suspended => pb::State::Suspended,
    }
    .into()
}
