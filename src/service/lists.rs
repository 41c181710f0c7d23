//! Lists, page by page. An index names the candidates. Each is then read like any other
//! record, so that no list returns a deleted one.

use super::{
    Accounts, Error, Freshness, MEMBERSHIPS_AT_ONCE, MembershipFilter, Refusal, last_owner,
    memberships::standing, page_token::ListName, read_set::keys_of_member, scope::require,
    store_failed,
};
use crate::{
    domain::{
        Key, NameMatch, Organization, OrganizationName, OrganizationScope, Record, Standing, User,
        Username, standing_membership,
    },
    store::{self, ListPage, ListPosition, ProfileKind, READS_AT_ONCE, Slice},
};

/// Approximate bytes of memberships after which a page ends, so that clients accept the response.
const MAX_PAGE_BYTES: usize = 2 * 1024 * 1024;

/// Most entries that are read for a page of a caller that is limited to some organizations.
const MAX_EXAMINED: u16 = 1000;

/// Most organizations of a page whose other Owners are searched: where there is none, a search reads all
/// members.
const LAST_OWNER_PAGE: u16 = 25;

/// A request for a page.
#[derive(Debug, Clone)]
pub struct PageRequest {
    /// Most entries.
    pub size: u16,
    /// The token of the page before. Empty: the first page.
    pub token: String,
}

/// A list of users or of organizations.
#[derive(Debug)]
pub struct ProfileList {
    /// The names.
    pub names: NameMatch,
    /// By name, or in no particular order.
    pub is_ordered: bool,
    /// Also those that are deleted and can be undeleted.
    pub show_deleted: bool,
}

impl ProfileList {
    fn name(&self, of: &str) -> ListName {
        let list = ListName::new("all", of);
        let list = list.with(&self.names).with(&self.is_ordered);
        list.with(&self.show_deleted.then_some("deleted"))
    }

    fn has(&self, record: &Record) -> bool {
        self.show_deleted || record.deletion().is_none()
    }
}

/// The record, unless it is deleted.
fn present(record: Record) -> Option<Record> {
    record.deletion().is_none().then_some(record)
}

/// A page of a list.
#[derive(Debug)]
pub struct Page<T> {
    /// The entries: at most the requested number, possibly none.
    pub entries: Vec<T>,
    /// The token of the next page. Empty: this is the last page.
    pub next_token: String,
}

impl Accounts {
    /// Lists the members of an organization, by name.
    ///
    /// # Errors
    /// [`Refusal::OrganizationNotGranted`], [`Refusal::OrganizationNotFound`],
    /// [`Refusal::NoPageToken`].
    pub async fn list_members(
        &self,
        scope: &OrganizationScope,
        organization: OrganizationName,
        filter: &MembershipFilter,
        page: PageRequest,
    ) -> Result<Page<Standing>, Error> {
        let list = ListName::new("members", organization.as_str()).with(filter);
        let position = self.page_tokens.open(&list, &page.token).await?;
        let slice = page.slice(position.as_ref());
        let listed = self
            .listed(self.table.members(&organization, &filter.name, slice))
            .await?;
        let mut entries = Vec::with_capacity(listed.found.len());
        let mut members = listed.found.into_iter().peekable();
        loop {
            let some: Vec<_> = members.by_ref().take(MEMBERSHIPS_AT_ONCE.into()).collect();
            let users = some.iter();
            let users = users.map(|member| Key::User(member.member_username.clone()));
            let mut keys = vec![Key::Organization(organization.clone())];
            keys.extend(users);
            let mut records = self.coherent(&keys).await?.into_iter();
            let found = records.next().flatten();
            require(scope, &organization, found.as_ref())?;
            let Some(found) = found.and_then(present).and_then(Record::into_organization) else {
                return Err(Error::Refused(Refusal::OrganizationNotFound(organization)));
            };
            entries.extend(records.zip(some).filter_map(|(user, membership)| {
                let user = user?.into_user()?;
                let now = || self.table.now();
                standing_membership(Some(&user), Some(&found), Some(membership), now)
            }));
            if members.peek().is_none() {
                break;
            }
        }
        entries.retain(|standing| filter.matches(standing));
        Ok(Page {
            entries,
            next_token: self.page_tokens.seal(&list, listed.next).await?,
        })
    }

    /// Lists the memberships of a user in organizations of the scope, by the organization's name. With
    /// `last_owner_only`, those of organizations that would be left without an Owner.
    ///
    /// # Errors
    /// [`Refusal::UserNotFound`], [`Refusal::NoPageToken`].
    pub async fn list_memberships(
        &self,
        scope: &OrganizationScope,
        user: Username,
        filter: &MembershipFilter,
        last_owner_only: bool,
        mut page: PageRequest,
    ) -> Result<Page<Standing>, Error> {
        if last_owner_only {
            page.size = page.size.min(LAST_OWNER_PAGE);
        }
        let list = ListName::new("organizations", user.as_str());
        let list = list.with(filter).with(&last_owner_only);
        let mut next = self.page_tokens.open(&list, &page.token).await?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut reads = Reads::new(scope, page.size);
        while let Some(limit) = reads.next(entries.len()) {
            let slice = Slice {
                after: next.as_ref(),
                limit,
            };
            let listed = self
                .listed(self.table.organizations_of(&user, &filter.name, slice))
                .await?;
            let some = self
                .memberships_in(scope, &user, listed, &mut bytes)
                .await?;
            entries.extend(some.found);
            next = some.next;
            if next.is_none() || bytes > MAX_PAGE_BYTES {
                break;
            }
        }
        entries.retain(|standing| filter.matches(standing));
        if last_owner_only {
            self.retain_last_owner(&mut entries, &user).await?;
        }
        Ok(Page {
            entries,
            next_token: self.page_tokens.seal(&list, next).await?,
        })
    }

    /// The memberships of a user in the listed organizations of the scope. The page ends when the listed
    /// memberships have [`MAX_PAGE_BYTES`], with the `bytes` of the pages before.
    async fn memberships_in(
        &self,
        scope: &OrganizationScope,
        user: &Username,
        listed: ListPage<OrganizationName>,
        bytes: &mut usize,
    ) -> Result<ListPage<Standing>, Error> {
        let (mut found, mut next) = (Vec::new(), listed.next);
        let mut organizations = listed.found.into_iter().peekable();
        loop {
            let some: Vec<_> = organizations
                .by_ref()
                .take(MEMBERSHIPS_AT_ONCE.into())
                .collect();
            let of_each = some.iter().flat_map(|organization| {
                let [_, organization, membership] = keys_of_member(organization, user);
                [organization, membership]
            });
            let mut keys = vec![Key::User(user.clone())];
            keys.extend(of_each);
            let mut records = self.coherent(&keys).await?.into_iter();
            let Some(member) = records.next().flatten().and_then(present) else {
                return Err(Error::Refused(Refusal::UserNotFound(user.clone())));
            };
            while let Some(organization) = records.next() {
                let membership = records.next().flatten();
                *bytes += membership.as_ref().map_or(0, Record::bytes);
                if organization.as_ref().is_some_and(|it| scope.has_record(it)) {
                    let records = [Some(member.clone()), organization, membership];
                    found.extend(standing(records, || self.table.now()));
                }
            }
            if organizations.peek().is_none() {
                break;
            }
            if *bytes > MAX_PAGE_BYTES {
                next = some.last().map(ListPosition::of_organization);
                break;
            }
        }
        Ok(ListPage { found, next })
    }

    /// Keeps the memberships of organizations of which the user is the last Owner.
    async fn retain_last_owner(
        &self,
        entries: &mut Vec<Standing>,
        user: &Username,
    ) -> Result<(), Error> {
        let _permit = self
            .reads
            .table_permits(READS_AT_ONCE)
            .await
            .map_err(store_failed)?;
        let organizations: Vec<_> = entries
            .iter()
            .filter(|standing| standing.membership.is_lasting_owner())
            .map(|standing| standing.membership.organization_name.clone())
            .collect();
        let without = last_owner::without_other_owner(&self.table, user, organizations).await;
        let without = without.map_err(store_failed)?;
        entries.retain(|standing| without.contains(&standing.membership.organization_name));
        Ok(())
    }

    /// Lists users.
    ///
    /// # Errors
    /// [`Refusal::NoPageToken`].
    pub async fn list_users(
        &self,
        profiles: &ProfileList,
        page: PageRequest,
    ) -> Result<Page<User>, Error> {
        let list = profiles.name("users");
        let position = self.page_tokens.open(&list, &page.token).await?;
        let slice = page.slice(position.as_ref());
        let listed = self.profiles(ProfileKind::Users, profiles, slice).await?;
        let records = self.coherent(&listed.found).await?.into_iter().flatten();
        let records = records.filter(|record| profiles.has(record));
        Ok(Page {
            entries: records.filter_map(Record::into_user).collect(),
            next_token: self.page_tokens.seal(&list, listed.next).await?,
        })
    }

    /// Lists organizations of the scope.
    ///
    /// # Errors
    /// [`Refusal::NoPageToken`].
    pub async fn list_organizations(
        &self,
        scope: &OrganizationScope,
        profiles: &ProfileList,
        page: PageRequest,
    ) -> Result<Page<Organization>, Error> {
        let list = profiles.name("organizations");
        let mut next = self.page_tokens.open(&list, &page.token).await?;
        let mut entries = Vec::new();
        let mut reads = Reads::new(scope, page.size);
        while let Some(limit) = reads.next(entries.len()) {
            let slice = Slice {
                after: next.as_ref(),
                limit,
            };
            let listed = self.profiles(ProfileKind::Organizations, profiles, slice);
            let listed = listed.await?;
            let records = self.coherent(&listed.found).await?.into_iter().flatten();
            let records = records.filter(|record| profiles.has(record));
            let found = records.filter_map(Record::into_organization);
            entries.extend(found.filter(|organization| scope.has(organization)));
            next = listed.next;
            if next.is_none() {
                break;
            }
        }
        Ok(Page {
            entries,
            next_token: self.page_tokens.seal(&list, next).await?,
        })
    }

    async fn profiles(
        &self,
        kind: ProfileKind,
        profiles: &ProfileList,
        slice: Slice<'_>,
    ) -> Result<ListPage<Key>, Error> {
        let names = &profiles.names;
        if profiles.is_ordered {
            let permits = self.reads.table_permits(READS_AT_ONCE).await;
            let _permits = permits.map_err(store_failed)?;
            let listed = self.table.profiles_by_name(kind, names, slice).await;
            listed.map_err(store_failed)
        } else {
            self.listed(self.table.profiles(kind, names, slice)).await
        }
    }

    /// Reads a page of a list under the table read limiter.
    async fn listed<T>(
        &self,
        read: impl Future<Output = Result<ListPage<T>, store::Error>>,
    ) -> Result<ListPage<T>, Error> {
        let _permit = self.reads.table_permits(1).await.map_err(store_failed)?;
        read.await.map_err(store_failed)
    }

    async fn coherent(&self, keys: &[Key]) -> Result<Vec<Option<Record>>, Error> {
        let result = self.reads.read(keys, Freshness::Coherent).await;
        Ok(result.map_err(store_failed)?.into_records().collect())
    }
}

/// The reads of a page. For a caller that is limited to some organizations, they go on until the page
/// is full or [`MAX_EXAMINED`] entries were read: neither a short page nor its token reveals that there are
/// others.
struct Reads {
    size: u16,
    /// Entries that may still be read.
    left: u16,
    is_limited: bool,
    has_begun: bool,
}

impl Reads {
    fn new(scope: &OrganizationScope, size: u16) -> Self {
        Self {
            size,
            left: MAX_EXAMINED,
            is_limited: !scope.is_every(),
            has_begun: false,
        }
    }

    /// The number of entries to read next for a page that has `found` already. `None`: it is complete.
    fn next(&mut self, found: usize) -> Option<u16> {
        let room = usize::from(self.size).saturating_sub(found);
        let room = u16::try_from(room).unwrap_or(self.size);
        if self.has_begun && (!self.is_limited || room == 0 || self.left == 0) {
            return None;
        }
        self.has_begun = true;
        self.left = self.left.saturating_sub(room);
        Some(room)
    }
}

impl PageRequest {
    fn slice<'a>(&self, after: Option<&'a ListPosition>) -> Slice<'a> {
        Slice {
            after,
            limit: self.size,
        }
    }
}
