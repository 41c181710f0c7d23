//! Checks histories. Knows nothing of how the service works.

use std::collections::{BTreeSet, HashSet};

use account_service::proto::account_v1::Role;

use super::record::{ORGANIZATIONS, Operation, Told, USERS, What};

/// How long after its answer a write of unknown outcome may still be applied.
const STRAGGLE_NS: u128 = 1_000_000_000;

type Membership = Option<Role>;

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
            Effect::MayWrite(left) => is_candidate(write, left, write.ended + STRAGGLE_NS),
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

/// Follows all ways in which the operations can have happened; returns the first
/// operation whose answer is in none of them.
fn first_impossible(operations: &[&Operation]) -> Option<Operation> {
    // What has happened already is with the state, until it is answered.
    let mut ways = HashSet::from([(State::default(), BTreeSet::new())]);
    let mut open = BTreeSet::new();
    let mut events: Vec<_> = operations
        .iter()
        .enumerate()
        .flat_map(|(id, operation)| {
            let straggle = if operation.told == Told::Unknown {
                STRAGGLE_NS
            } else {
                0
            };
            [
                (operation.began, true, id),
                (operation.ended + straggle, false, id),
            ]
        })
        .collect();
    events.sort_unstable();
    for (_, is_beginning, id) in events {
        if is_beginning {
            open.insert(id);
            continue;
        }
        let is_certain = operations[id].told != Told::Unknown;
        let mut next = HashSet::new();
        let mut seen = HashSet::new();
        let mut unexplored: Vec<_> = ways.into_iter().collect();
        while let Some((state, happened)) = unexplored.pop() {
            if !seen.insert((state, happened.clone())) {
                continue;
            }
            if happened.contains(&id) || !is_certain {
                let mut left = happened.clone();
                left.remove(&id);
                next.insert((state, left));
            }
            if happened.contains(&id) {
                continue;
            }
            for other in open.iter().filter(|other| !happened.contains(*other)) {
                let operation = operations[*other];
                if let Some(after) = state.after(operation.what, operation.told) {
                    let mut happened = happened.clone();
                    happened.insert(*other);
                    unexplored.push((after, happened));
                }
            }
        }
        if next.is_empty() {
            return Some(*operations[id]);
        }
        open.remove(&id);
        ways = next;
    }
    None
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
}
