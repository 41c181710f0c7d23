//! Lists, page by page. An index names the candidates. Each is then read like any other
//! record, so that no list returns a deleted one.

use super::{
    Accounts, Error, Freshness, MEMBERSHIPS_AT_ONCE, MembershipFilter, Refusal, last_owner,
    memberships::standing, page_token::ListName, read_set::keys_of_member, store_failed,
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
        self.require_in_scope(scope, [&organization]).await?;
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
            let Some(Record::Organization(found)) = records.next().flatten() else {
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

    /// Lists the memberships of a user in organizations of the scope, by the organization's name. With `last_owner_only`, those of
    /// organizations that would be left without an Owner.
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
        let position = self.page_tokens.open(&list, &page.token).await?;
        let slice = page.slice(position.as_ref());
        let listed = self
            .listed(self.table.organizations_of(&user, &filter.name, slice))
            .await?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        let mut next = listed.next;
        let mut organizations = listed.found.into_iter().peekable();
        loop {
            let some: Vec<_> = organizations
                .by_ref()
                .take(MEMBERSHIPS_AT_ONCE.into())
                .collect();
            let of_each = some.iter().flat_map(|organization| {
                let [_, organization, membership] = keys_of_member(organization, &user);
                [organization, membership]
            });
            let mut keys = vec![Key::User(user.clone())];
            keys.extend(of_each);
            let mut records = self.coherent(&keys).await?.into_iter();
            let Some(found) = records.next().flatten() else {
                return Err(Error::Refused(Refusal::UserNotFound(user)));
            };
            while let Some(organization) = records.next() {
                let membership = records.next().flatten();
                bytes += membership.as_ref().map_or(0, Record::bytes);
                let is_in_scope = match &organization {
                    Some(Record::Organization(organization)) => scope.has(organization),
                    _ => false,
                };
                let records = [Some(found.clone()), organization, membership];
                let standing = is_in_scope.then(|| standing(records, || self.table.now()));
                entries.extend(standing.flatten());
            }
            if organizations.peek().is_none() {
                break;
            }
            if bytes > MAX_PAGE_BYTES {
                next = some.last().map(ListPosition::of_organization);
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

    /// Lists users, by name or in no particular order.
    ///
    /// # Errors
    /// [`Refusal::NoPageToken`].
    pub async fn list_users(
        &self,
        names: &NameMatch,
        is_ordered: bool,
        page: PageRequest,
    ) -> Result<Page<User>, Error> {
        let list = ListName::new("all", "users").with(names).with(&is_ordered);
        let position = self.page_tokens.open(&list, &page.token).await?;
        let slice = page.slice(position.as_ref());
        let listed = self.profiles(ProfileKind::Users, names, is_ordered, slice);
        self.found_profiles(&list, listed.await?, Record::into_user)
            .await
    }

    /// Lists organizations of the scope, by name or in no particular order.
    ///
    /// # Errors
    /// [`Refusal::NoPageToken`].
    pub async fn list_organizations(
        &self,
        scope: &OrganizationScope,
        names: &NameMatch,
        is_ordered: bool,
        page: PageRequest,
    ) -> Result<Page<Organization>, Error> {
        let list = ListName::new("all", "organizations");
        let list = list.with(names).with(&is_ordered);
        let position = self.page_tokens.open(&list, &page.token).await?;
        let slice = page.slice(position.as_ref());
        let listed = self.profiles(ProfileKind::Organizations, names, is_ordered, slice);
        let listed = listed.await?;
        let mut page = self
            .found_profiles(&list, listed, Record::into_organization)
            .await?;
        page.entries.retain(|organization| scope.has(organization));
        Ok(page)
    }

    async fn profiles(
        &self,
        kind: ProfileKind,
        names: &NameMatch,
        is_ordered: bool,
        slice: Slice<'_>,
    ) -> Result<ListPage<Key>, Error> {
        if is_ordered {
            let permits = self.reads.table_permits(READS_AT_ONCE).await;
            let _permits = permits.map_err(store_failed)?;
            let listed = self.table.profiles_by_name(kind, names, slice).await;
            listed.map_err(store_failed)
        } else {
            self.listed(self.table.profiles(kind, names, slice)).await
        }
    }

    /// The page of the listed records that exist.
    async fn found_profiles<T>(
        &self,
        list: &ListName,
        listed: ListPage<Key>,
        from_record: fn(Record) -> Option<T>,
    ) -> Result<Page<T>, Error> {
        let records = self.coherent(&listed.found).await?.into_iter();
        Ok(Page {
            entries: records.flatten().filter_map(from_record).collect(),
            next_token: self.page_tokens.seal(list, listed.next).await?,
        })
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

impl PageRequest {
    fn slice<'a>(&self, after: Option<&'a ListPosition>) -> Slice<'a> {
        Slice {
            after,
            limit: self.size,
        }
    }
}
