//! Checks histories. Knows nothing of how the service works.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use account_service::proto::account_v1::{self as pb, Role};

use super::record::{ORGANIZATIONS, Operation, Part, Profile, Told, USERS, What};

/// How long after its answer a write of unknown outcome may still be applied.
pub const STRAGGLE: Duration = Duration::from_secs(1);
const STRAGGLE_NS: u128 = STRAGGLE.as_nanos();

/// When an operation cannot happen any more.
fn over(operation: &Operation) -> u128 {
    match operation.told {
        Told::Unknown => operation.ended + STRAGGLE_NS,
        _ => operation.ended,
    }
}

/// A part of what the table holds that is written as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Register {
    User(usize),
    Profile(usize, Part),
    Organization(usize),
    /// The membership of the user and the organization that there are.
    Membership(usize, usize),
}

/// What a register holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value {
    Absent,
    Is(pb::State),
    Number(u8),
    Role(Role),
}

/// What an answer says of a register.
#[derive(Debug, Clone, Copy)]
enum Fact {
    Is(Value),
    IsNot(Value),
}

const ACTIVE: Value = Value::Is(pb::State::Active);

impl Fact {
    fn holds(self, value: Value) -> bool {
        match self {
            Self::Is(it) => it == value,
            Self::IsNot(it) => it != value,
        }
    }
}

impl Register {
    /// What it holds before anything was done.
    fn at_first(self) -> Value {
        match self {
            Self::Organization(_) => ACTIVE,
            Self::User(_) | Self::Profile(..) | Self::Membership(..) => Value::Absent,
        }
    }
}

/// What the register holds once this was done; `None` if it is not written.
fn written(what: What, register: Register) -> Option<Value> {
    use Register::{Membership, Organization, Profile, User};
    let same = |one: usize, other: usize, value: Value| (one == other).then_some(value);
    match (what, register) {
        (What::CreateUser(user), User(of)) => same(user, of, ACTIVE),
        (What::CreateUser(user), Profile(of, _)) => same(user, of, Value::Number(0)),
        (What::CreateUser(user), Membership(_, of)) => same(user, of, Value::Absent),
        (What::DeleteUser(user), User(of) | Profile(of, _) | Membership(_, of)) => {
            same(user, of, Value::Absent)
        }
        (What::SetUserState(user, state), User(of)) => same(user, of, Value::Is(state)),
        (What::Update(user, part, number), Profile(of, of_part)) if part == of_part => {
            same(user, of, Value::Number(number))
        }
        (What::CreateOrganization(name), Organization(of)) => same(name, of, ACTIVE),
        (What::DeleteOrganization(name), Organization(of)) => same(name, of, Value::Absent),
        (What::CreateOrganization(name) | What::DeleteOrganization(name), Membership(of, _)) => {
            same(name, of, Value::Absent)
        }
        (What::SetOrganizationState(name, state), Organization(of)) => {
            same(name, of, Value::Is(state))
        }
        (What::Add(at, user, role) | What::ChangeRole(at, user, role), Membership(of, of_user)) => {
            ((at, user) == (of, of_user)).then_some(Value::Role(role))
        }
        (What::Transfer(at, user), Membership(of, of_user)) => {
            ((at, user) == (of, of_user)).then_some(Value::Role(Role::Owner))
        }
        (What::Remove(at, user), Membership(of, of_user)) => {
            ((at, user) == (of, of_user)).then_some(Value::Absent)
        }
        _ => None,
    }
}

/// What an answer says: one of these is so, each of several registers.
fn told(operation: &Operation) -> Vec<Vec<(Register, Fact)>> {
    use Fact::{Is, IsNot};
    use Register::{Membership, Organization, Profile, User};
    let Operation { what, told, .. } = *operation;
    match (what, told) {
        (What::Check(at, user), Told::IsMember(Some(role))) => vec![vec![
            (Membership(at, user), Is(Value::Role(role))),
            (User(user), Is(ACTIVE)),
            (Organization(at), Is(ACTIVE)),
        ]],
        (What::Check(at, user), Told::IsMember(None)) => vec![
            vec![(Membership(at, user), Is(Value::Absent))],
            vec![(User(user), IsNot(ACTIVE))],
            vec![(Organization(at), IsNot(ACTIVE))],
        ],
        (What::GetUser(user), Told::IsUser(Some(profile))) => vec![vec![
            (User(user), Is(Value::Is(profile.state))),
            (Profile(user, Part::First), Is(Value::Number(profile.first))),
            (Profile(user, Part::Last), Is(Value::Number(profile.last))),
        ]],
        (What::CreateUser(user), Told::Exists) => vec![vec![(User(user), IsNot(Value::Absent))]],
        (What::CreateOrganization(name), Told::Exists) => {
            vec![vec![(Organization(name), IsNot(Value::Absent))]]
        }
        (What::Add(at, user, _), Told::Exists) => {
            vec![vec![(Membership(at, user), IsNot(Value::Absent))]]
        }
        (What::Add(at, user, _) | What::Transfer(at, user), Told::NoUser) => vec![vec![
            (User(user), Is(Value::Absent)),
            (Membership(at, user), Is(Value::Absent)),
        ]],
        (What::GetUser(user), Told::IsUser(None))
        | (
            What::DeleteUser(user)
            | What::SetUserState(user, _)
            | What::Update(user, ..)
            | What::SetEmail(user, _),
            Told::NoUser,
        ) => vec![vec![(User(user), Is(Value::Absent))]],
        (
            What::DeleteOrganization(name)
            | What::SetOrganizationState(name, _)
            | What::Transfer(name, _),
            Told::NoOrganization,
        ) => vec![vec![(Organization(name), Is(Value::Absent))]],
        (What::ChangeRole(at, user, _) | What::Remove(at, user), Told::NoMember) => {
            vec![vec![(Membership(at, user), Is(Value::Absent))]]
        }
        (
            What::Add(at, ..) | What::ChangeRole(at, ..) | What::Remove(at, _),
            Told::NotPermitted,
        ) => vec![vec![(Organization(at), IsNot(ACTIVE))]],
        _ => Vec::new(),
    }
}

/// What a refusal says that later answers may not contradict.
fn revealed(operation: &Operation, register: Register) -> Option<Fact> {
    // Whom it is not permitted learns nothing.
    if operation.what.is_read() || operation.told == Told::NotPermitted {
        return None;
    }
    let facts = told(operation).into_iter().flatten();
    let mut facts = facts.filter(|(of, _)| *of == register);
    facts.next().map(|(_, fact)| fact)
}

/// What was done to a register.
#[derive(Debug, Default)]
struct Log {
    /// What was written, or may have been: not before one time, nor after the other.
    writes: Vec<(u128, u128, Value)>,
    /// What was acknowledged, between these times: whatever was there before it is gone,
    /// but for what the fact allows.
    ends: Vec<(u128, u128, Option<Fact>)>,
}

impl Log {
    fn of(register: Register, history: &[Operation]) -> Self {
        let mut log = Self::default();
        log.writes.push((0, 0, register.at_first()));
        for operation in history {
            let Operation {
                told, began, ended, ..
            } = *operation;
            let written = written(operation.what, register);
            match (told, written) {
                (Told::Done, Some(value)) => {
                    log.writes.push((began, ended, value));
                    log.ends.push((began, ended, None));
                }
                (Told::Unknown, Some(value)) => log.writes.push((began, over(operation), value)),
                _ => {
                    let revealed = revealed(operation, register);
                    log.ends
                        .extend(revealed.map(|fact| (began, ended, Some(fact))));
                }
            }
        }
        log
    }

    /// Whether some write could have left the register as the reader was told.
    fn may_tell(&self, fact: Fact, read: &Operation) -> bool {
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

/// No answer may be older than what was acknowledged or revealed before it was
/// asked for. Returns what breaks that.
pub fn stale_answers(history: &[Operation]) -> Vec<String> {
    let mut logs: HashMap<Register, Log> = HashMap::new();
    let mut violations = Vec::new();
    for read in history {
        let told = told(read);
        let mut may_be = |(register, fact): &(Register, Fact)| {
            let log = logs.entry(*register);
            let log = log.or_insert_with(|| Log::of(*register, history));
            log.may_tell(*fact, read)
        };
        if !told.is_empty() && !told.iter().any(|facts| facts.iter().all(&mut may_be)) {
            let (organization, user) = of(read.what);
            let organizations = organization.map_or(0..ORGANIZATIONS, |it| it..it + 1);
            let users = user.map_or(0..USERS, |it| it..it + 1);
            let is_around = |other: &&Operation| {
                let mut pairs = organizations
                    .clone()
                    .flat_map(|organization| users.clone().map(move |user| (organization, user)));
                pairs.any(|(organization, user)| other.what.concerns(organization, user))
            };
            let around: Vec<_> = history.iter().filter(is_around).collect();
            violations.push(format!("stale: {read:?}\n{}", context(&around, read.began)));
        }
    }
    violations
}

/// The organization and the user of an operation.
fn of(what: What) -> (Option<usize>, Option<usize>) {
    match what {
        What::CreateUser(user)
        | What::DeleteUser(user)
        | What::SetUserState(user, _)
        | What::Update(user, ..)
        | What::SetEmail(user, _)
        | What::GetUser(user) => (None, Some(user)),
        What::CreateOrganization(name)
        | What::DeleteOrganization(name)
        | What::SetOrganizationState(name, _) => (Some(name), None),
        What::Add(at, user, _)
        | What::ChangeRole(at, user, _)
        | What::Remove(at, user)
        | What::Transfer(at, user)
        | What::Check(at, user) => (Some(at), Some(user)),
    }
}

/// The state of one user, one organization and their membership, were operations
/// instantaneous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    user: Option<Profile>,
    organization: Option<pb::State>,
    membership: Option<Role>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            user: None,
            organization: Some(pb::State::Active),
            membership: None,
        }
    }
}

impl State {
    fn is_organization_active(self) -> bool {
        self.organization == Some(pb::State::Active)
    }

    fn effective(self) -> Option<Role> {
        let is_active = self
            .user
            .is_some_and(|user| user.state == pb::State::Active);
        self.membership
            .filter(|_| is_active && self.is_organization_active())
    }

    /// The state after it was done; `None` if it could not be.
    fn after_done(self, what: What) -> Option<Self> {
        let is_active = self.is_organization_active();
        match what {
            What::CreateUser(_) => self.user.is_none().then_some(Self {
                user: Some(Profile {
                    state: pb::State::Active,
                    first: 0,
                    last: 0,
                }),
                membership: None,
                ..self
            }),
            What::DeleteUser(_) => self.user.is_some().then_some(Self {
                user: None,
                membership: None,
                ..self
            }),
            What::SetUserState(_, state) => self.with_user(|user| user.state = state),
            What::Update(_, Part::First, number) => self.with_user(|user| user.first = number),
            What::Update(_, Part::Last, number) => self.with_user(|user| user.last = number),
            What::SetEmail(..) => self.with_user(|_| {}),
            What::CreateOrganization(_) => self.organization.is_none().then_some(Self {
                organization: Some(pb::State::Active),
                membership: None,
                ..self
            }),
            What::DeleteOrganization(_) => self.organization.is_some().then_some(Self {
                organization: None,
                membership: None,
                ..self
            }),
            What::SetOrganizationState(_, state) => self.organization.is_some().then_some(Self {
                organization: Some(state),
                ..self
            }),
            What::Add(_, _, role) => {
                (is_active && self.user.is_some() && self.membership.is_none())
                    .then_some(self.with(Some(role)))
            }
            What::ChangeRole(_, _, role) => {
                (is_active && self.membership.is_some()).then_some(self.with(Some(role)))
            }
            What::Remove(..) => (is_active && self.membership.is_some()).then_some(self.with(None)),
            What::Transfer(..) => (self.organization.is_some() && self.user.is_some())
                .then_some(self.with(Some(Role::Owner))),
            What::Check(..) | What::GetUser(_) => None,
        }
    }

    /// The state after an operation that was told this; `None` if it could not
    /// have been.
    fn after(self, what: What, told: Told) -> Option<Self> {
        let is_active = self.is_organization_active();
        let by_owner = matches!(
            what,
            What::Add(..) | What::ChangeRole(..) | What::Remove(..)
        );
        let is_so = match (what, told) {
            (_, Told::Done) => return self.after_done(what),
            (_, Told::Unknown) => return Some(self.after_done(what).unwrap_or(self)),
            (_, Told::Nothing) => true,
            (_, Told::IsMember(role)) => self.effective() == role,
            (_, Told::IsUser(user)) => self.user == user,
            (_, Told::NotPermitted) => by_owner && !is_active,
            (_, Told::NoOrganization) => self.organization.is_none(),
            (What::CreateUser(_) | What::SetEmail(..), Told::Exists) => self.user.is_some(),
            (What::CreateOrganization(_), Told::Exists) => self.organization.is_some(),
            (_, Told::Exists) => is_active && self.membership.is_some(),
            (_, Told::NoUser) => self.user.is_none() && (is_active || !by_owner),
            (_, Told::NoMember) => self.membership.is_none() && (is_active || !by_owner),
        };
        is_so.then_some(self)
    }

    fn with(self, membership: Option<Role>) -> Self {
        Self { membership, ..self }
    }

    fn with_user(self, change: impl FnOnce(&mut Profile)) -> Option<Self> {
        let mut user = self.user?;
        change(&mut user);
        Some(Self {
            user: Some(user),
            ..self
        })
    }
}

/// Every operation must seem to happen at one instant between question and
/// answer. Returns what breaks that.
pub fn not_linearizable(history: &[Operation]) -> Vec<String> {
    memberships()
        .filter_map(|(organization, user)| {
            let operations: Vec<_> = history
                .iter()
                .filter(|operation| operation.what.concerns(organization, user))
                .filter(|operation| operation.told != Told::Nothing)
                .collect();
            let stuck = first_impossible(&operations)?;
            Some(format!(
                "not linearizable: {stuck:?}\n{}",
                context(&operations, stuck.began)
            ))
        })
        .collect()
}

/// A way in which the operations until now can have happened. Of those that are not
/// answered yet, it says which have happened already.
#[derive(Debug, Clone, Default)]
struct Way {
    state: State,
    /// Those that were done.
    done: BTreeSet<usize>,
    /// Those of unknown outcome.
    unknown: BTreeSet<usize>,
    /// Those that changed nothing.
    seen: BTreeSet<usize>,
}

impl Way {
    /// Whatever can follow upon the other can follow upon this: what was seen needs
    /// not be seen any more, and what need not happen may still.
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

/// Ways, without those that others cover.
#[derive(Debug, Default)]
struct Ways(HashMap<(State, BTreeSet<usize>), Vec<Way>>);

impl Ways {
    /// Whether it is a new one.
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
/// operation whose answer is in none of them.
fn first_impossible(operations: &[&Operation]) -> Option<Operation> {
    let ended = |id: usize| over(operations[id]);
    let beginnings = operations.iter().enumerate();
    let beginnings = beginnings.map(|(id, operation)| (operation.began, true, id));
    let ends = (0..operations.len()).map(|id| (ended(id), false, id));
    let mut events: Vec<_> = beginnings.chain(ends).collect();
    events.sort_unstable();

    let mut ways = vec![Way::default()];
    // In the order of their ends.
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

/// The ways in which an operation that is answered now has happened, or need not.
/// Others happen only where it would not have been possible before them.
fn ways_past(
    id: usize,
    ways: Vec<Way>,
    operations: &[&Operation],
    open: &BTreeSet<(u128, usize)>,
) -> Vec<Way> {
    let mut past = Ways::default();
    let mut tried = Ways::default();
    if operations[id].told == Told::Unknown {
        for way in &ways {
            past.add(way.clone().forget(id));
        }
    }
    let mut untried = ways;
    while let Some(mut way) = untried.pop() {
        // What changes nothing happens as soon as it can.
        for (_, other) in open {
            let Operation { what, told, .. } = *operations[*other];
            let is_seen = !matches!(told, Told::Done | Told::Unknown);
            if is_seen && way.state.after(what, told).is_some() {
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
        // Of those that do the same, the one that is to happen first.
        let mut kinds = HashSet::new();
        for (_, other) in open {
            let Operation { what, told, .. } = *operations[*other];
            if way.happened(*other) || !kinds.insert((what, told)) {
                continue;
            }
            let Some(after) = way.state.after(what, told) else {
                continue;
            };
            let mut longer = Way {
                state: after,
                ..way.clone()
            };
            match told {
                Told::Done => longer.done.insert(*other),
                // It can as well not happen.
                Told::Unknown if after == way.state => continue,
                Told::Unknown => longer.unknown.insert(*other),
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
            it.what, it.told
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

    fn operation(what: What, told: Told, began: u128, ended: u128) -> Operation {
        Operation {
            what,
            told,
            began,
            ended,
        }
    }

    fn founded() -> Vec<Operation> {
        vec![
            operation(What::CreateUser(0), Told::Done, 0, 1),
            operation(What::Add(0, 0, Role::Member), Told::Done, 2, 3),
        ]
    }

    fn check(member: Option<Role>, began: u128, ended: u128) -> Operation {
        operation(What::Check(0, 0), Told::IsMember(member), began, ended)
    }

    #[test]
    fn a_read_of_what_was_removed_before_it_began_is_stale() {
        let mut history = founded();
        history.push(operation(What::Remove(0, 0), Told::Done, 4, 6));
        history.push(check(Some(Role::Member), 5, 8));
        assert!(stale_answers(&history).is_empty());
        assert!(not_linearizable(&history).is_empty());
        history.push(check(Some(Role::Member), 7, 8));
        assert_eq!(stale_answers(&history).len(), 1);
        assert_eq!(not_linearizable(&history).len(), 1);
    }

    #[test]
    fn a_read_that_contradicts_what_a_write_revealed_is_stale() {
        let mut history = founded();
        history.push(operation(What::Remove(0, 0), Told::Unknown, 4, 5));
        history.push(operation(What::Remove(0, 0), Told::NoMember, 6, 7));
        assert!(stale_answers(&history).is_empty());
        history.push(check(Some(Role::Member), 8, 9));
        assert_eq!(stale_answers(&history).len(), 1);
    }

    #[test]
    fn a_read_stands_on_the_user_and_on_the_organization_too() {
        let suspended = pb::State::Suspended;
        for what in [
            What::SetUserState(0, suspended),
            What::SetOrganizationState(0, suspended),
            What::DeleteOrganization(0),
            What::DeleteUser(0),
        ] {
            let mut history = founded();
            history.push(operation(what, Told::Done, 4, 6));
            for (role, violations) in [(Some(Role::Member), 1), (None, 0)] {
                let mut history = history.clone();
                history.push(check(role, 5, 8));
                assert!(stale_answers(&history).is_empty(), "{what:?}");
                history.push(check(role, 7, 8));
                assert_eq!(stale_answers(&history).len(), violations, "{what:?}");
            }
        }
    }

    #[test]
    fn a_lost_update_is_stale() {
        let mut history = founded();
        history.push(operation(What::Update(0, Part::First, 1), Told::Done, 4, 6));
        history.push(operation(What::Update(0, Part::Last, 2), Told::Done, 5, 7));
        let user = |first, last| {
            let profile = Profile {
                state: pb::State::Active,
                first,
                last,
            };
            operation(What::GetUser(0), Told::IsUser(Some(profile)), 8, 9)
        };
        history.push(user(1, 2));
        assert!(stale_answers(&history).is_empty());
        assert!(not_linearizable(&history).is_empty());
        history.push(user(0, 2));
        assert_eq!(stale_answers(&history).len(), 1);
        assert_eq!(not_linearizable(&history).len(), ORGANIZATIONS);
    }

    #[test]
    fn reads_that_go_back_are_not_linearizable() {
        let mut history = founded();
        history.push(operation(What::DeleteUser(0), Told::Done, 4, 20));
        history.push(check(None, 5, 6));
        assert!(not_linearizable(&history).is_empty());
        history.push(check(Some(Role::Member), 7, 8));
        assert!(stale_answers(&history).is_empty());
        assert_eq!(not_linearizable(&history).len(), 1);
    }

    /// Whether the operations that are left can happen one after the other, by trying
    /// all orders.
    fn can_happen(state: State, left: &[Operation]) -> bool {
        if left.iter().all(|it| it.told == Told::Unknown) {
            return true;
        }
        (0..left.len()).any(|next| {
            let mut rest = left.to_vec();
            let it = rest.remove(next);
            // What was answered before it began has happened, or never does.
            let is_over = |other: &Operation| over(other) <= it.began;
            let (gone, rest): (Vec<_>, Vec<_>) = rest.into_iter().partition(is_over);
            gone.iter().all(|other| other.told == Told::Unknown)
                && state
                    .after(it.what, it.told)
                    .is_some_and(|after| can_happen(after, &rest))
        })
    }

    fn any_history(random: &mut fastrand::Rng) -> Vec<Operation> {
        let roles = [Role::Member, Role::Admin];
        let mut any = |_| {
            let role = roles[random.usize(..2)];
            let what = match random.usize(..12) {
                0 => What::CreateUser(0),
                1 => What::DeleteUser(0),
                2 | 3 => What::Add(0, 0, role),
                4 => What::ChangeRole(0, 0, role),
                5 => What::Remove(0, 0),
                6 => What::SetUserState(0, pb::State::Suspended),
                7 => What::DeleteOrganization(0),
                8 => What::CreateOrganization(0),
                _ => What::Check(0, 0),
            };
            let told = match what {
                What::Check(..) => {
                    Told::IsMember([None, Some(roles[0]), Some(roles[1])][random.usize(..3)])
                }
                What::CreateUser(_) => [Told::Done, Told::Exists, Told::Unknown][random.usize(..3)],
                _ => [Told::Done, Told::Done, Told::NoMember, Told::Unknown][random.usize(..4)],
            };
            let began = random.u128(..12) * STRAGGLE_NS / 2;
            let ended = began + 1 + random.u128(..4) * STRAGGLE_NS / 2;
            operation(what, told, began, ended)
        };
        let mut history = vec![operation(What::CreateUser(0), Told::Done, 0, 1)];
        history.extend((0..6).map(&mut any));
        history
    }

    #[test]
    fn what_is_found_is_what_trying_all_orders_finds() {
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
    fn many_who_ask_at_once_for_long_are_checked_soon() {
        let mut history = founded();
        for number in 0..200 {
            let began = 4 + number;
            let told = Told::IsMember(Some(
                [Role::Member, Role::Admin][usize::from(number % 2 == 0)],
            ));
            history.push(operation(What::Check(0, 0), told, began, 10_000));
            let role = [Role::Admin, Role::Member][usize::from(number % 2 == 0)];
            let told = if number % 10 == 0 {
                Told::Done
            } else {
                Told::Unknown
            };
            history.push(operation(What::ChangeRole(0, 0, role), told, began, 10_000));
        }
        assert!(not_linearizable(&history).is_empty());
    }
}
