//! Checks histories against a sequential model, which shares no code with the service.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use account_service::proto::account_v1::{self as pb, Role};

use super::record::{Call, ORGANIZATIONS, Operation, Outcome, Part, Profile, USERS};

/// The time after its end in which a write of unknown outcome may still be applied.
pub const STRAGGLE: Duration = Duration::from_secs(1);
const STRAGGLE_NS: u128 = STRAGGLE.as_nanos();

/// The latest time at which an operation can take effect.
fn last_effect(operation: &Operation) -> u128 {
    match operation.outcome {
        Outcome::Unknown => operation.ended + STRAGGLE_NS,
        _ => operation.ended,
    }
}

/// A part of the table's contents that is written as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Register {
    User(usize),
    Profile(usize, Part),
    Organization(usize),
    /// The membership between the current organization and the current user.
    Membership(usize, usize),
}

/// The value of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Absent,
    Is(pb::State),
    Number(u8),
    Role(Role),
}

/// A statement about the value of a register.
#[derive(Debug, Clone, Copy)]
enum Fact {
    Is(Value),
    IsNot(Value),
    /// There is nothing, or something that is deleted and can be undeleted.
    IsGone,
    /// The opposite.
    IsThere,
}

const ACTIVE: Value = Value::Is(pb::State::Active);
const DELETED: Value = Value::Is(pb::State::Deleted);
/// The values that an undeletion may leave.
const UNDELETED: [Value; 2] = [ACTIVE, Value::Is(pb::State::Suspended)];

impl Fact {
    fn holds(self, value: Value) -> bool {
        match self {
            Self::Is(it) => it == value,
            Self::IsNot(it) => it != value,
            Self::IsGone => [Value::Absent, DELETED].contains(&value),
            Self::IsThere => !Self::IsGone.holds(value),
        }
    }
}

impl Register {
    /// The value before the first operation.
    fn initial(self) -> Value {
        match self {
            Self::Organization(_) => ACTIVE,
            Self::User(_) | Self::Profile(..) | Self::Membership(..) => Value::Absent,
        }
    }
}

/// The values of which a successful call leaves one in the register. None: it does not write it.
fn values(call: Call, register: Register) -> Vec<Value> {
    match (call, register) {
        (Call::UndeleteUser(name), Register::User(of))
        | (Call::UndeleteOrganization(name), Register::Organization(of))
            if name == of =>
        {
            UNDELETED.into()
        }
        _ => written(call, register).into_iter().collect(),
    }
}

/// The value that a successful call leaves in the register; `None` if it does not write it, or if it
/// leaves one of several values.
fn written(call: Call, register: Register) -> Option<Value> {
    use Register::{Membership, Organization, Profile, User};
    let same = |one: usize, other: usize, value: Value| (one == other).then_some(value);
    match (call, register) {
        (Call::CreateUser(user), User(of)) => same(user, of, ACTIVE),
        (Call::CreateUser(user), Profile(of, _)) => same(user, of, Value::Number(0)),
        (Call::CreateUser(user), Membership(_, of)) => same(user, of, Value::Absent),
        (Call::DeleteUser(user), User(of) | Profile(of, _) | Membership(_, of)) => {
            same(user, of, Value::Absent)
        }
        (Call::DeleteUserSoftly(user), User(of)) => same(user, of, DELETED),
        (Call::DeleteOrganizationSoftly(name), Organization(of)) => same(name, of, DELETED),
        (Call::SetUserState(user, state), User(of)) => same(user, of, Value::Is(state)),
        (Call::Update(user, part, number), Profile(of, of_part)) if part == of_part => {
            same(user, of, Value::Number(number))
        }
        (Call::CreateOrganization(name), Organization(of)) => same(name, of, ACTIVE),
        (Call::DeleteOrganization(name), Organization(of)) => same(name, of, Value::Absent),
        (Call::CreateOrganization(name) | Call::DeleteOrganization(name), Membership(of, _)) => {
            same(name, of, Value::Absent)
        }
        (Call::SetOrganizationState(name, state), Organization(of)) => {
            same(name, of, Value::Is(state))
        }
        (Call::Add(at, user, role) | Call::ChangeRole(at, user, role), Membership(of, of_user)) => {
            ((at, user) == (of, of_user)).then_some(Value::Role(role))
        }
        (Call::Transfer(at, user), Membership(of, of_user)) => {
            ((at, user) == (of, of_user)).then_some(Value::Role(Role::Owner))
        }
        (Call::Remove(at, user), Membership(of, of_user)) => {
            ((at, user) == (of, of_user)).then_some(Value::Absent)
        }
        _ => None,
    }
}

/// The statements of a response: the facts of at least one of these lists hold.
fn statements(operation: &Operation) -> Vec<Vec<(Register, Fact)>> {
    use Fact::{Is, IsGone, IsNot, IsThere};
    use Register::{Membership, Organization, Profile, User};
    let Operation { call, outcome, .. } = *operation;
    match (call, outcome) {
        (Call::Check(at, user), Outcome::IsMember(Some(role))) => vec![vec![
            (Membership(at, user), Is(Value::Role(role))),
            (User(user), Is(ACTIVE)),
            (Organization(at), Is(ACTIVE)),
        ]],
        (Call::Check(at, user), Outcome::IsMember(None)) => vec![
            vec![(Membership(at, user), Is(Value::Absent))],
            vec![(User(user), IsNot(ACTIVE))],
            vec![(Organization(at), IsNot(ACTIVE))],
        ],
        (Call::GetUser(user), Outcome::IsUser(Some(profile))) => vec![vec![
            (User(user), Is(Value::Is(profile.state))),
            (Profile(user, Part::First), Is(Value::Number(profile.first))),
            (Profile(user, Part::Last), Is(Value::Number(profile.last))),
        ]],
        (Call::CreateUser(user), Outcome::Exists) => vec![vec![(User(user), IsNot(Value::Absent))]],
        (Call::CreateOrganization(name), Outcome::Exists) => {
            vec![vec![(Organization(name), IsNot(Value::Absent))]]
        }
        (Call::Add(at, user, _), Outcome::Exists) => {
            vec![vec![(Membership(at, user), IsNot(Value::Absent))]]
        }
        (Call::GetUser(user), Outcome::IsUser(None))
        | (Call::DeleteUser(user) | Call::UndeleteUser(user), Outcome::NoUser) => {
            vec![vec![(User(user), Is(Value::Absent))]]
        }
        (
            Call::DeleteUserSoftly(user)
            | Call::SetUserState(user, _)
            | Call::Update(user, ..)
            | Call::SetEmail(user, _)
            | Call::Add(_, user, _)
            | Call::Transfer(_, user),
            Outcome::NoUser,
        ) => vec![vec![(User(user), IsGone)]],
        (Call::UndeleteUser(user), Outcome::Exists) => vec![vec![(User(user), IsThere)]],
        (
            Call::DeleteOrganization(name) | Call::UndeleteOrganization(name),
            Outcome::NoOrganization,
        ) => vec![vec![(Organization(name), Is(Value::Absent))]],
        (
            Call::DeleteOrganizationSoftly(name)
            | Call::SetOrganizationState(name, _)
            | Call::Transfer(name, _),
            Outcome::NoOrganization,
        ) => vec![vec![(Organization(name), IsGone)]],
        (Call::UndeleteOrganization(name), Outcome::Exists) => {
            vec![vec![(Organization(name), IsThere)]]
        }
        (Call::ChangeRole(at, user, _), Outcome::NoMember) => vec![
            vec![(Membership(at, user), Is(Value::Absent))],
            vec![(User(user), Is(DELETED))],
        ],
        (Call::Remove(at, user), Outcome::NoMember) => {
            vec![vec![(Membership(at, user), Is(Value::Absent))]]
        }
        (
            Call::Add(at, ..) | Call::ChangeRole(at, ..) | Call::Remove(at, _),
            Outcome::NotPermitted,
        ) => vec![vec![(Organization(at), IsNot(ACTIVE))]],
        _ => Vec::new(),
    }
}

/// The fact in an error response that later responses must not contradict.
fn revealed(operation: &Operation, register: Register) -> Option<Fact> {
    // `NotPermitted` reveals nothing.
    if operation.call.is_read() || operation.outcome == Outcome::NotPermitted {
        return None;
    }
    let [facts] = <[_; 1]>::try_from(statements(operation)).ok()?;
    let mut facts = facts.into_iter().filter(|(of, _)| *of == register);
    facts.next().map(|(_, fact)| fact)
}

/// The operations on a register.
#[derive(Debug, Default)]
struct Log {
    /// Applied and possible writes: the earliest time, the latest time, and the value.
    writes: Vec<(u128, u128, Value)>,
    /// Acknowledged operations: begin, end, and a fact. Earlier values that the fact
    /// excludes are gone; without a fact, all earlier values.
    ends: Vec<(u128, u128, Option<Fact>)>,
}

impl Log {
    fn of(register: Register, history: &[Operation]) -> Self {
        let mut log = Self::default();
        log.writes.push((0, 0, register.initial()));
        for operation in history {
            let Operation {
                outcome,
                began,
                ended,
                ..
            } = *operation;
            let values = values(operation.call, register);
            let written = |until| values.iter().map(move |value| (began, until, *value));
            match outcome {
                Outcome::Done if !values.is_empty() => {
                    log.writes.extend(written(ended));
                    log.ends.push((began, ended, None));
                }
                Outcome::Unknown if !values.is_empty() => {
                    log.writes.extend(written(last_effect(operation)));
                }
                _ => {
                    let revealed = revealed(operation, register);
                    log.ends
                        .extend(revealed.map(|fact| (began, ended, Some(fact))));
                }
            }
        }
        log
    }

    /// Whether a write explains the fact in the response to a read.
    fn is_explained(&self, fact: Fact, read: &Operation) -> bool {
        self.writes.iter().any(|(began, ended, left)| {
            fact.holds(*left)
                && *began < read.ended
                && !self.ends.iter().any(|(later_began, later_ended, allows)| {
                    let replaces = allows.is_none_or(|fact| !fact.holds(*left));
                    replaces && ended < later_began && *later_ended < read.began
                })
        })
    }
}

/// Returns the stale responses. They are older than a state that was acknowledged or
/// revealed before their requests.
pub fn stale_responses(history: &[Operation]) -> Vec<String> {
    let mut logs: HashMap<Register, Log> = HashMap::new();
    let mut violations = Vec::new();
    for read in history {
        let alternatives = statements(read);
        let mut may_be = |(register, fact): &(Register, Fact)| {
            let log = logs.entry(*register);
            let log = log.or_insert_with(|| Log::of(*register, history));
            log.is_explained(*fact, read)
        };
        if !alternatives.is_empty()
            && !alternatives
                .iter()
                .any(|facts| facts.iter().all(&mut may_be))
        {
            let (organization, user) = of(read.call);
            let organizations = organization.map_or(0..ORGANIZATIONS, |it| it..it + 1);
            let users = user.map_or(0..USERS, |it| it..it + 1);
            let is_around = |other: &&Operation| {
                let mut pairs = organizations
                    .clone()
                    .flat_map(|organization| users.clone().map(move |user| (organization, user)));
                pairs.any(|(organization, user)| other.call.concerns(organization, user))
            };
            let around: Vec<_> = history.iter().filter(is_around).collect();
            violations.push(format!("stale: {read:?}\n{}", context(&around, read.began)));
        }
    }
    violations
}

/// The organization and the user of a call.
fn of(call: Call) -> (Option<usize>, Option<usize>) {
    match call {
        Call::CreateUser(user)
        | Call::DeleteUser(user)
        | Call::DeleteUserSoftly(user)
        | Call::UndeleteUser(user)
        | Call::SetUserState(user, _)
        | Call::Update(user, ..)
        | Call::SetEmail(user, _)
        | Call::GetUser(user) => (None, Some(user)),
        Call::CreateOrganization(name)
        | Call::DeleteOrganization(name)
        | Call::DeleteOrganizationSoftly(name)
        | Call::UndeleteOrganization(name)
        | Call::SetOrganizationState(name, _) => (Some(name), None),
        Call::Add(at, user, _)
        | Call::ChangeRole(at, user, _)
        | Call::Remove(at, user)
        | Call::Transfer(at, user)
        | Call::Check(at, user) => (Some(at), Some(user)),
    }
}

/// The sequential model: the state of one user, one organization and their membership
/// between instantaneous operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    user: Option<Profile>,
    /// The state of the user before its deletion. Active while it is not deleted.
    user_before: pb::State,
    organization: Option<pb::State>,
    /// The same of the organization.
    organization_before: pb::State,
    membership: Option<Role>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            user: None,
            user_before: pb::State::Active,
            organization: Some(pb::State::Active),
            organization_before: pb::State::Active,
            membership: None,
        }
    }
}

impl State {
    fn is_organization_active(self) -> bool {
        self.organization == Some(pb::State::Active)
    }

    fn is_user_there(self) -> bool {
        self.user
            .is_some_and(|user| user.state != pb::State::Deleted)
    }

    fn is_organization_there(self) -> bool {
        self.organization
            .is_some_and(|state| state != pb::State::Deleted)
    }

    fn effective(self) -> Option<Role> {
        let is_active = self
            .user
            .is_some_and(|user| user.state == pb::State::Active);
        self.membership
            .filter(|_| is_active && self.is_organization_active())
    }

    /// The state after a successful call; `None` if the call cannot succeed.
    fn after_done(self, call: Call) -> Option<Self> {
        let is_active = self.is_organization_active();
        match call {
            Call::CreateUser(_) => self.user.is_none().then_some(Self {
                user: Some(Profile {
                    state: pb::State::Active,
                    first: 0,
                    last: 0,
                }),
                membership: None,
                ..self
            }),
            Call::DeleteUser(_) => self.user.is_some().then_some(Self {
                user: None,
                user_before: pb::State::Active,
                membership: None,
                ..self
            }),
            Call::DeleteUserSoftly(_) => {
                let before = self.user?.state;
                let deleted = self.with_user(|user| user.state = pb::State::Deleted)?;
                Some(Self {
                    user_before: before,
                    ..deleted
                })
            }
            Call::UndeleteUser(_) => {
                let user = self.user.filter(|_| !self.is_user_there())?;
                Some(Self {
                    user: Some(Profile {
                        state: self.user_before,
                        ..user
                    }),
                    user_before: pb::State::Active,
                    ..self
                })
            }
            Call::SetUserState(_, state) => self.with_user(|user| user.state = state),
            Call::Update(_, Part::First, number) => self.with_user(|user| user.first = number),
            Call::Update(_, Part::Last, number) => self.with_user(|user| user.last = number),
            Call::SetEmail(..) => self.with_user(|_| {}),
            Call::CreateOrganization(_) => self.organization.is_none().then_some(Self {
                organization: Some(pb::State::Active),
                membership: None,
                ..self
            }),
            Call::DeleteOrganization(_) => self.organization.is_some().then_some(Self {
                organization: None,
                organization_before: pb::State::Active,
                membership: None,
                ..self
            }),
            Call::DeleteOrganizationSoftly(_) => {
                let before = self.organization.filter(|_| self.is_organization_there())?;
                Some(Self {
                    organization: Some(pb::State::Deleted),
                    organization_before: before,
                    ..self
                })
            }
            Call::UndeleteOrganization(_) => {
                self.organization
                    .filter(|_| !self.is_organization_there())?;
                Some(Self {
                    organization: Some(self.organization_before),
                    organization_before: pb::State::Active,
                    ..self
                })
            }
            Call::SetOrganizationState(_, state) => self.is_organization_there().then_some(Self {
                organization: Some(state),
                ..self
            }),
            Call::Add(_, _, role) => {
                (is_active && self.is_user_there() && self.membership.is_none())
                    .then_some(self.with(Some(role)))
            }
            Call::ChangeRole(_, _, role) => {
                (is_active && self.is_user_there() && self.membership.is_some())
                    .then_some(self.with(Some(role)))
            }
            Call::Remove(..) => (is_active && self.membership.is_some()).then_some(self.with(None)),
            Call::Transfer(..) => (self.is_organization_there() && self.is_user_there())
                .then_some(self.with(Some(Role::Owner))),
            Call::Check(..) | Call::GetUser(_) => None,
        }
    }

    /// The state after a call with this outcome; `None` if the outcome is impossible.
    fn after(self, call: Call, outcome: Outcome) -> Option<Self> {
        let is_active = self.is_organization_active();
        let by_owner = matches!(
            call,
            Call::Add(..) | Call::ChangeRole(..) | Call::Remove(..)
        );
        let is_so = match (call, outcome) {
            (_, Outcome::Done) => return self.after_done(call),
            (_, Outcome::Unknown) => return Some(self.after_done(call).unwrap_or(self)),
            (_, Outcome::Nothing) => true,
            (_, Outcome::IsMember(role)) => self.effective() == role,
            (_, Outcome::IsUser(user)) => self.user == user,
            (_, Outcome::NotPermitted) => by_owner && !is_active,
            (
                Call::DeleteOrganization(_) | Call::UndeleteOrganization(_),
                Outcome::NoOrganization,
            ) => self.organization.is_none(),
            (_, Outcome::NoOrganization) => !self.is_organization_there(),
            (Call::CreateUser(_), Outcome::Exists) => self.user.is_some(),
            (Call::SetEmail(..) | Call::UndeleteUser(_), Outcome::Exists) => self.is_user_there(),
            (Call::CreateOrganization(_), Outcome::Exists) => self.organization.is_some(),
            (Call::UndeleteOrganization(_), Outcome::Exists) => self.is_organization_there(),
            (_, Outcome::Exists) => is_active && self.is_user_there() && self.membership.is_some(),
            (Call::DeleteUser(_) | Call::UndeleteUser(_), Outcome::NoUser) => self.user.is_none(),
            (_, Outcome::NoUser) => !self.is_user_there() && (is_active || !by_owner),
            (Call::Remove(..), Outcome::NoMember) => is_active && self.membership.is_none(),
            (_, Outcome::NoMember) => {
                (self.membership.is_none() || !self.is_user_there()) && (is_active || !by_owner)
            }
        };
        is_so.then_some(self)
    }

    fn with(self, membership: Option<Role>) -> Self {
        Self { membership, ..self }
    }

    fn with_user(self, change: impl FnOnce(&mut Profile)) -> Option<Self> {
        let mut user = self.user.filter(|_| self.is_user_there())?;
        change(&mut user);
        Some(Self {
            user: Some(user),
            ..self
        })
    }
}

/// Returns the violations of linearizability: every operation must seem to happen at one
/// instant between request and response.
pub fn not_linearizable(history: &[Operation]) -> Vec<String> {
    memberships()
        .filter_map(|(organization, user)| {
            let operations: Vec<_> = history
                .iter()
                .filter(|operation| operation.call.concerns(organization, user))
                .filter(|operation| operation.outcome != Outcome::Nothing)
                .collect();
            let stuck = first_impossible(&operations)?;
            Some(format!(
                "not linearizable: {stuck:?}\n{}",
                context(&operations, stuck.began)
            ))
        })
        .collect()
}

/// A way in which the operations until now can have happened. The sets contain the
/// operations that have happened and are still open.
#[derive(Debug, Clone, Default)]
struct Way {
    state: State,
    /// Successful operations.
    done: BTreeSet<usize>,
    /// Operations of unknown outcome.
    unknown: BTreeSet<usize>,
    /// Operations that changed nothing.
    seen: BTreeSet<usize>,
}

impl Way {
    /// Whether every continuation of the other way also continues this one: fewer
    /// operations still have to happen, and more may.
    fn covers(&self, other: &Self) -> bool {
        self.unknown.is_subset(&other.unknown) && self.seen.is_superset(&other.seen)
    }

    fn happened(&self, id: usize) -> bool {
        self.done.contains(&id) || self.unknown.contains(&id) || self.seen.contains(&id)
    }

    fn forget(mut self, id: usize) -> Self {
        self.done.remove(&id);
        self.unknown.remove(&id);
        self.seen.remove(&id);
        self
    }
}

/// A set of ways. No way covers another one.
#[derive(Debug, Default)]
struct Ways(HashMap<(State, BTreeSet<usize>), Vec<Way>>);

impl Ways {
    /// Adds a way, unless another one covers it. Returns whether it was added.
    fn add(&mut self, way: Way) -> bool {
        let known = self.0.entry((way.state, way.done.clone())).or_default();
        if known.iter().any(|it| it.covers(&way)) {
            return false;
        }
        known.retain(|it| !way.covers(it));
        known.push(way);
        true
    }

    fn into_vec(self) -> Vec<Way> {
        self.0.into_values().flatten().collect()
    }
}

/// Follows all ways in which the operations can have happened; returns the first
/// operation whose outcome is impossible in all of them.
fn first_impossible(operations: &[&Operation]) -> Option<Operation> {
    let ended = |id: usize| last_effect(operations[id]);
    let beginnings = operations.iter().enumerate();
    let beginnings = beginnings.map(|(id, operation)| (operation.began, true, id));
    let ends = (0..operations.len()).map(|id| (ended(id), false, id));
    let mut events: Vec<_> = beginnings.chain(ends).collect();
    events.sort_unstable();

    let mut ways = vec![Way::default()];
    // Sorted by their ends.
    let mut open: BTreeSet<(u128, usize)> = BTreeSet::new();
    for (_, is_beginning, id) in events {
        if is_beginning {
            open.insert((ended(id), id));
            continue;
        }
        let next = ways_past(id, ways, operations, &open);
        if next.is_empty() {
            return Some(*operations[id]);
        }
        open.remove(&(ended(id), id));
        ways = next;
    }
    None
}

/// The ways after the end of an operation: it has happened, or, if its outcome is unknown,
/// never does. Other operations are added to a way only until this one has happened.
fn ways_past(
    id: usize,
    ways: Vec<Way>,
    operations: &[&Operation],
    open: &BTreeSet<(u128, usize)>,
) -> Vec<Way> {
    let mut past = Ways::default();
    let mut tried = Ways::default();
    if operations[id].outcome == Outcome::Unknown {
        for way in &ways {
            past.add(way.clone().forget(id));
        }
    }
    let mut untried = ways;
    while let Some(mut way) = untried.pop() {
        // An operation that changes nothing happens as soon as possible.
        for (_, other) in open {
            let Operation { call, outcome, .. } = *operations[*other];
            let is_seen = !matches!(outcome, Outcome::Done | Outcome::Unknown);
            if is_seen && way.state.after(call, outcome).is_some() {
                way.seen.insert(*other);
            }
        }
        if way.happened(id) {
            past.add(way.forget(id));
            continue;
        }
        if !tried.add(way.clone()) {
            continue;
        }
        // Of equal operations, only the one that ends first.
        let mut kinds = HashSet::new();
        for (_, other) in open {
            let Operation { call, outcome, .. } = *operations[*other];
            if way.happened(*other) || !kinds.insert((call, outcome)) {
                continue;
            }
            let Some(after) = way.state.after(call, outcome) else {
                continue;
            };
            let mut longer = Way {
                state: after,
                ..way.clone()
            };
            match outcome {
                Outcome::Done => longer.done.insert(*other),
                // Without an effect, it need not happen.
                Outcome::Unknown if after == way.state => continue,
                Outcome::Unknown => longer.unknown.insert(*other),
                _ => continue,
            };
            untried.push(longer);
        }
    }
    past.into_vec()
}

fn memberships() -> impl Iterator<Item = (usize, usize)> {
    (0..ORGANIZATIONS).flat_map(|organization| (0..USERS).map(move |user| (organization, user)))
}

/// The operations before a violation.
fn context(operations: &[&Operation], began: u128) -> String {
    let mut before: Vec<_> = operations.iter().filter(|it| it.began <= began).collect();
    before.sort_by_key(|operation| operation.began);
    let before = before.iter().rev().take(12).rev();
    let lines = before.map(|it| {
        let (began, ended) = (millis(it.began), millis(it.ended));
        format!(
            "    {began:>9.3} - {ended:>9.3} ms  {:?} -> {:?}",
            it.call, it.outcome
        )
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn millis(nanos: u128) -> f64 {
    nanos as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(call: Call, outcome: Outcome, began: u128, ended: u128) -> Operation {
        Operation {
            call,
            outcome,
            began,
            ended,
        }
    }

    fn founded() -> Vec<Operation> {
        vec![
            operation(Call::CreateUser(0), Outcome::Done, 0, 1),
            operation(Call::Add(0, 0, Role::Member), Outcome::Done, 2, 3),
        ]
    }

    fn check(member: Option<Role>, began: u128, ended: u128) -> Operation {
        operation(Call::Check(0, 0), Outcome::IsMember(member), began, ended)
    }

    #[test]
    fn a_read_of_a_membership_removed_before_the_read_began_is_stale() {
        let mut history = founded();
        history.push(operation(Call::Remove(0, 0), Outcome::Done, 4, 6));
        history.push(check(Some(Role::Member), 5, 8));
        assert!(stale_responses(&history).is_empty());
        assert!(not_linearizable(&history).is_empty());
        history.push(check(Some(Role::Member), 7, 8));
        assert_eq!(stale_responses(&history).len(), 1);
        assert_eq!(not_linearizable(&history).len(), 1);
    }

    #[test]
    fn a_read_that_contradicts_the_error_of_an_earlier_write_is_stale() {
        let mut history = founded();
        history.push(operation(Call::Remove(0, 0), Outcome::Unknown, 4, 5));
        history.push(operation(Call::Remove(0, 0), Outcome::NoMember, 6, 7));
        assert!(stale_responses(&history).is_empty());
        history.push(check(Some(Role::Member), 8, 9));
        assert_eq!(stale_responses(&history).len(), 1);
    }

    #[test]
    fn a_check_depends_on_the_user_and_on_the_organization_too() {
        let suspended = pb::State::Suspended;
        for call in [
            Call::SetUserState(0, suspended),
            Call::SetOrganizationState(0, suspended),
            Call::DeleteOrganization(0),
            Call::DeleteOrganizationSoftly(0),
            Call::DeleteUser(0),
            Call::DeleteUserSoftly(0),
        ] {
            let mut history = founded();
            history.push(operation(call, Outcome::Done, 4, 6));
            for (role, violations) in [(Some(Role::Member), 1), (None, 0)] {
                let mut history = history.clone();
                history.push(check(role, 5, 8));
                assert!(stale_responses(&history).is_empty(), "{call:?}");
                history.push(check(role, 7, 8));
                assert_eq!(stale_responses(&history).len(), violations, "{call:?}");
            }
        }
    }

    #[test]
    fn an_undeletion_brings_back_the_state_before_the_deletion() {
        for (before, role) in [
            (pb::State::Active, Some(Role::Member)),
            (pb::State::Suspended, None),
        ] {
            let mut history = founded();
            for (call, at) in [
                (Call::SetUserState(0, before), 4),
                (Call::DeleteUserSoftly(0), 6),
                (Call::UndeleteUser(0), 8),
            ] {
                history.push(operation(call, Outcome::Done, at, at + 1));
            }
            history.push(check(role, 10, 11));
            assert!(stale_responses(&history).is_empty());
            assert!(not_linearizable(&history).is_empty());
            let other = if role.is_some() {
                None
            } else {
                Some(Role::Member)
            };
            history.push(check(other, 12, 13));
            assert_eq!(not_linearizable(&history).len(), 1);
        }
    }

    #[test]
    fn a_read_that_misses_an_acknowledged_update_is_stale() {
        let mut history = founded();
        history.push(operation(
            Call::Update(0, Part::First, 1),
            Outcome::Done,
            4,
            6,
        ));
        history.push(operation(
            Call::Update(0, Part::Last, 2),
            Outcome::Done,
            5,
            7,
        ));
        let user = |first, last| {
            let profile = Profile {
                state: pb::State::Active,
                first,
                last,
            };
            operation(Call::GetUser(0), Outcome::IsUser(Some(profile)), 8, 9)
        };
        history.push(user(1, 2));
        assert!(stale_responses(&history).is_empty());
        assert!(not_linearizable(&history).is_empty());
        history.push(user(0, 2));
        assert_eq!(stale_responses(&history).len(), 1);
        assert_eq!(not_linearizable(&history).len(), ORGANIZATIONS);
    }

    #[test]
    fn reads_that_go_back_in_time_are_not_linearizable() {
        let mut history = founded();
        history.push(operation(Call::DeleteUser(0), Outcome::Done, 4, 20));
        history.push(check(None, 5, 6));
        assert!(not_linearizable(&history).is_empty());
        history.push(check(Some(Role::Member), 7, 8));
        assert!(stale_responses(&history).is_empty());
        assert_eq!(not_linearizable(&history).len(), 1);
    }

    /// Whether the remaining operations can happen one after the other, by trying all
    /// orders.
    fn can_happen(state: State, left: &[Operation]) -> bool {
        if left.iter().all(|it| it.outcome == Outcome::Unknown) {
            return true;
        }
        (0..left.len()).any(|next| {
            let mut rest = left.to_vec();
            let it = rest.remove(next);
            // An operation that ended before `it` began cannot happen after it.
            let is_over = |other: &Operation| last_effect(other) <= it.began;
            let (gone, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_over);
            gone.iter().all(|other| other.outcome == Outcome::Unknown)
                && state
                    .after(it.call, it.outcome)
                    .is_some_and(|after| can_happen(after, &rest))
        })
    }

    fn any_history(random: &mut fastrand::Rng) -> Vec<Operation> {
        let roles = [Role::Member, Role::Admin];
        let mut any = |_| {
            let role = roles[random.usize(..2)];
            let call = match random.usize(..14) {
                0 => Call::CreateUser(0),
                1 => Call::DeleteUser(0),
                2 | 3 => Call::Add(0, 0, role),
                4 => Call::ChangeRole(0, 0, role),
                5 => Call::Remove(0, 0),
                6 => Call::SetUserState(0, pb::State::Suspended),
                7 => Call::DeleteOrganization(0),
                8 => Call::CreateOrganization(0),
                9 => Call::DeleteUserSoftly(0),
                10 => Call::UndeleteUser(0),
                _ => Call::Check(0, 0),
            };
            let outcome = match call {
                Call::Check(..) => {
                    Outcome::IsMember([None, Some(roles[0]), Some(roles[1])][random.usize(..3)])
                }
                Call::CreateUser(_) => {
                    [Outcome::Done, Outcome::Exists, Outcome::Unknown][random.usize(..3)]
                }
                _ => [
                    Outcome::Done,
                    Outcome::Done,
                    Outcome::NoMember,
                    Outcome::Unknown,
                ][random.usize(..4)],
            };
            let began = random.u128(..12) * STRAGGLE_NS / 2;
            let ended = began + 1 + random.u128(..4) * STRAGGLE_NS / 2;
            operation(call, outcome, began, ended)
        };
        let mut history = vec![operation(Call::CreateUser(0), Outcome::Done, 0, 1)];
        history.extend((0..6).map(&mut any));
        history
    }

    #[test]
    fn the_checker_agrees_with_a_search_of_all_orders() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut possible = 0;
        for _ in 0..5_000 {
            let history = any_history(&mut random);
            let can_happen = can_happen(State::default(), &history);
            assert_eq!(
                not_linearizable(&history).is_empty(),
                can_happen,
                "{history:#?}"
            );
            possible += usize::from(can_happen);
        }
        assert!((500..4_500).contains(&possible), "{possible}");
    }

    #[test]
    fn the_checker_is_fast_for_many_long_concurrent_calls() {
        let mut history = founded();
        for number in 0..200 {
            let began = 4 + number;
            let outcome = Outcome::IsMember(Some(
                [Role::Member, Role::Admin][usize::from(number % 2 == 0)],
            ));
            history.push(operation(Call::Check(0, 0), outcome, began, 10_000));
            let role = [Role::Admin, Role::Member][usize::from(number % 2 == 0)];
            let outcome = if number % 10 == 0 {
                Outcome::Done
            } else {
                Outcome::Unknown
            };
            history.push(operation(
                Call::ChangeRole(0, 0, role),
                outcome,
                began,
                10_000,
            ));
        }
        assert!(not_linearizable(&history).is_empty());
    }
}
