//! Checks histories. Knows nothing of how the service works.

use std::collections::{BTreeSet, HashMap, HashSet};

use account_service::proto::account_v1::Role;

use super::record::{ORGANIZATIONS, Operation, Told, USERS, What};

/// How long after its answer a write of unknown outcome may still be applied.
const STRAGGLE_NS: u128 = 1_000_000_000;

type Membership = Option<Role>;

/// When an operation cannot happen any more.
fn over(operation: &Operation) -> u128 {
    match operation.told {
        Told::Unknown => operation.ended + STRAGGLE_NS,
        _ => operation.ended,
    }
}

/// What a reader was told of a membership.
#[derive(Debug, Clone, Copy)]
enum Fact {
    Is(Membership),
    IsSome,
}

impl Fact {
    fn holds(self, membership: Membership) -> bool {
        match self {
            Self::Is(it) => it == membership,
            Self::IsSome => membership.is_some(),
        }
    }
}

/// What an operation does to a membership, as its answer says.
enum Effect {
    /// The membership is this, afterwards.
    Writes(Membership),
    /// The membership may be this, afterwards.
    MayWrite(Membership),
    /// A write that changed nothing found this.
    Reveals(Fact),
    /// A read found this.
    Reads(Fact),
    None,
}

fn effect(operation: &Operation) -> Effect {
    let written = match operation.what {
        What::Add(_, _, role) | What::ChangeRole(_, _, role) => Some(role),
        What::CreateUser(_) | What::DeleteUser(_) | What::Remove(..) | What::Check(..) => None,
    };
    match (operation.what, operation.told) {
        (What::Check(..), Told::IsMember(membership)) => Effect::Reads(Fact::Is(membership)),
        (What::Check(..), _)
        | (What::CreateUser(_), Told::Exists | Told::Unknown)
        | (_, Told::Nothing | Told::IsMember(_)) => Effect::None,
        (_, Told::Done) => Effect::Writes(written),
        (_, Told::Unknown) => Effect::MayWrite(written),
        (_, Told::Exists) => Effect::Reveals(Fact::IsSome),
        (_, Told::NoUser | Told::NoMember) => Effect::Reveals(Fact::Is(None)),
    }
}

/// No answer may be older than what was acknowledged or revealed before it was
/// asked for. Returns what breaks that.
pub fn stale_answers(history: &[Operation]) -> Vec<String> {
    let mut violations = Vec::new();
    for (organization, user) in memberships() {
        let operations: Vec<_> = history
            .iter()
            .filter(|operation| operation.what.concerns(organization, user))
            .collect();
        for read in &operations {
            let (Effect::Reads(fact) | Effect::Reveals(fact)) = effect(read) else {
                continue;
            };
            if !may_be_told(fact, read, &operations) {
                violations.push(format!(
                    "stale: {read:?}\n{}",
                    context(&operations, read.began)
                ));
            }
        }
    }
    violations
}

/// Whether some write could have left the membership as the reader was told.
fn may_be_told(fact: Fact, read: &Operation, operations: &[&Operation]) -> bool {
    let beginning = Operation {
        what: read.what,
        told: Told::Done,
        began: 0,
        ended: 0,
    };
    let is_candidate = |write: &Operation, left: Membership, ended: u128| {
        fact.holds(left)
            && write.began < read.ended
            && !operations.iter().any(|later| {
                let replaces = match effect(later) {
                    Effect::Writes(_) => true,
                    Effect::Reveals(revealed) => !revealed.holds(left),
                    _ => false,
                };
                replaces && ended < later.began && later.ended < read.began
            })
    };
    is_candidate(&beginning, None, 0)
        || operations.iter().any(|write| match effect(write) {
            Effect::Writes(left) => is_candidate(write, left, write.ended),
            Effect::MayWrite(left) => is_candidate(write, left, over(write)),
            _ => false,
        })
}

/// The state of one user and one membership, were operations instantaneous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
struct State {
    is_user: bool,
    membership: Membership,
}

impl State {
    /// The state after an operation that was told this; `None` if it could not
    /// have been.
    fn after(self, what: What, told: Told) -> Option<Self> {
        let done = match what {
            What::CreateUser(_) => (!self.is_user).then_some(Self {
                is_user: true,
                membership: None,
            }),
            What::DeleteUser(_) => self.is_user.then(Self::default),
            What::Add(_, _, role) => {
                (self.is_user && self.membership.is_none()).then_some(self.with(Some(role)))
            }
            What::ChangeRole(_, _, role) => {
                self.membership.is_some().then(|| self.with(Some(role)))
            }
            What::Remove(..) => self.membership.is_some().then(|| self.with(None)),
            What::Check(..) => None,
        };
        let is_so = match (what, told) {
            (_, Told::Done) => return done,
            (_, Told::Unknown) => return Some(done.unwrap_or(self)),
            (_, Told::Nothing) => true,
            (_, Told::IsMember(membership)) => self.membership == membership,
            (What::CreateUser(_), _) => self.is_user,
            (_, Told::Exists) => self.membership.is_some(),
            (_, Told::NoUser) => !self.is_user,
            (_, Told::NoMember) => self.membership.is_none(),
        };
        is_so.then_some(self)
    }

    fn with(self, membership: Membership) -> Self {
        Self { membership, ..self }
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

    fn check(member: Membership, began: u128, ended: u128) -> Operation {
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
            let what = match random.usize(..9) {
                0 => What::CreateUser(0),
                1 => What::DeleteUser(0),
                2 | 3 => What::Add(0, 0, role),
                4 => What::ChangeRole(0, 0, role),
                5 => What::Remove(0, 0),
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
        for _ in 0..20_000 {
            let history = any_history(&mut random);
            let can_happen = can_happen(State::default(), &history);
            assert_eq!(
                not_linearizable(&history).is_empty(),
                can_happen,
                "{history:#?}"
            );
            possible += usize::from(can_happen);
        }
        assert!((2_000..18_000).contains(&possible), "{possible}");
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
