//! The commands for people: each makes one call, or reads the pages of a list.

use clap::{Args, Subcommand, ValueEnum};

use super::{
    client::{ReadSettings, WriteSettings},
    values::{label, not_empty},
};

/// The commands for people.
#[derive(Debug, Subcommand)]
pub enum ResourceCommand {
    /// Show a user, an organization or a membership.
    #[command(subcommand)]
    Get(GetCommand),
    /// List users, organizations, the members of an organization, or the memberships
    /// of a user.
    #[command(subcommand)]
    List(ListCommand),
    /// Check whether a user is a member of an organization: exit with 0 if so, and with
    /// 2 if not.
    Check(CheckSettings),
    /// Create a user or an organization.
    #[command(subcommand)]
    Create(CreateCommand),
    /// Add a user to an organization.
    Add(AddSettings),
    /// Remove a user from an organization.
    Remove(RemoveSettings),
    /// Change the role of a member.
    SetRole(SetRoleSettings),
    /// Suspend a user or an organization.
    #[command(subcommand)]
    Suspend(SuspendCommand),
    /// Resume a suspended user or organization.
    #[command(subcommand)]
    Resume(ResumeCommand),
    /// Delete a user or an organization.
    #[command(subcommand)]
    Delete(DeleteCommand),
}

/// A role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    /// The role Owner.
    Owner,
    /// The role Admin.
    Admin,
    /// The role Member.
    Member,
}

/// A user.
#[derive(Debug, Clone, Args)]
pub struct UserArg {
    /// Name of the user.
    #[arg(value_name = "USER", value_parser = not_empty)]
    pub username: String,
}

/// An organization.
#[derive(Debug, Clone, Args)]
pub struct OrganizationArg {
    /// Name of the organization.
    #[arg(value_name = "ORGANIZATION", value_parser = not_empty)]
    pub organization: String,
}

/// A user in an organization.
#[derive(Debug, Clone, Args)]
pub struct MemberArg {
    /// The organization.
    #[command(flatten)]
    pub organization: OrganizationArg,
    /// The user.
    #[command(flatten)]
    pub user: UserArg,
}

/// The version to change.
#[derive(Debug, Clone, Args)]
pub struct VersionArg {
    /// Change only this version, the `etag` of an earlier output.
    #[arg(long, value_name = "ETAG")]
    pub etag: Option<String>,
}

/// The acting user.
#[derive(Debug, Clone, Args)]
pub struct ActingUser {
    /// Name of the user on whose behalf the change is made.
    #[arg(long = "as", value_name = "USER", value_parser = not_empty)]
    pub acting_user: String,
}

/// What to show, and from where.
#[derive(Debug, Clone, Args)]
pub struct Reading<T: Args> {
    /// What to show.
    #[command(flatten)]
    pub subject: T,
    /// From where.
    #[command(flatten)]
    pub read: ReadSettings,
}

/// What to change, and where.
#[derive(Debug, Clone, Args)]
pub struct Writing<T: Args> {
    /// What to change.
    #[command(flatten)]
    pub subject: T,
    /// The expected version.
    #[command(flatten)]
    pub version: VersionArg,
    /// Where.
    #[command(flatten)]
    pub write: WriteSettings,
}

/// Commands that show one resource.
#[derive(Debug, Subcommand)]
pub enum GetCommand {
    /// Show a user.
    User(Reading<UserArg>),
    /// Show an organization.
    Organization(Reading<OrganizationArg>),
    /// Show a membership.
    Member(Reading<MemberArg>),
}

/// Bounds of a list.
#[derive(Debug, Clone, Args)]
pub struct ListSettings {
    /// Only entries that this filter accepts, such as 'username = "oli*"' or, of members,
    /// 'role = ROLE_ADMIN'.
    #[arg(long, value_name = "FILTER")]
    pub filter: Option<String>,
    /// Most entries. 0: all.
    #[arg(long, value_name = "COUNT", default_value_t = 100)]
    pub limit: usize,
    /// From where.
    #[command(flatten)]
    pub read: ReadSettings,
}

/// What to list, and how much of it.
#[derive(Debug, Clone, Args)]
pub struct Listing<T: Args> {
    /// Whose entries.
    #[command(flatten)]
    pub of: T,
    /// How many, and from where.
    #[command(flatten)]
    pub list: ListSettings,
}

/// Commands that list.
#[derive(Debug, Subcommand)]
pub enum ListCommand {
    /// List users, by name.
    Users(ListSettings),
    /// List organizations, by name.
    Organizations(ListSettings),
    /// List the members of an organization, by name.
    Members(Listing<OrganizationArg>),
    /// List the organizations of a user, by name.
    Memberships(Listing<UserArg>),
}

/// Settings of `check`.
#[derive(Debug, Clone, Args)]
pub struct CheckSettings {
    /// Who, and where.
    #[command(flatten)]
    pub member: MemberArg,
    /// The least role.
    #[arg(long, value_name = "ROLE", default_value = "member")]
    pub role: RoleArg,
    /// From where.
    #[command(flatten)]
    pub read: ReadSettings,
}

/// Fields that users and organizations have.
#[derive(Debug, Clone, Args)]
pub struct ProfileFields {
    /// Name to show to people.
    #[arg(long, value_name = "TEXT")]
    pub display_name: Option<String>,
    /// Id of it at an identity provider, unique.
    #[arg(long, value_name = "ID")]
    pub external_id: Option<String>,
    /// A label; can be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
}

/// Commands that create.
#[derive(Debug, Subcommand)]
pub enum CreateCommand {
    /// Create a user.
    User {
        /// The user.
        #[command(flatten)]
        user: UserArg,
        /// E-mail address, unique.
        #[arg(long, value_name = "ADDRESS")]
        email: Option<String>,
        /// Further fields.
        #[command(flatten)]
        fields: ProfileFields,
        /// Where.
        #[command(flatten)]
        write: WriteSettings,
    },
    /// Create an organization.
    Organization {
        /// The organization.
        #[command(flatten)]
        organization: OrganizationArg,
        /// Name of the user who founds it, and is its first Owner.
        #[arg(long, value_name = "USER", value_parser = not_empty)]
        founder: String,
        /// Further fields.
        #[command(flatten)]
        fields: ProfileFields,
        /// Where.
        #[command(flatten)]
        write: WriteSettings,
    },
}

/// Settings of `add`.
#[derive(Debug, Clone, Args)]
pub struct AddSettings {
    /// Who, and where.
    #[command(flatten)]
    pub member: MemberArg,
    /// The role.
    #[arg(long, value_name = "ROLE", default_value = "member")]
    pub role: RoleArg,
    /// End of the membership, as in RFC 3339: 2027-01-31T00:00:00Z.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// A label of the membership; can be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// The acting user.
    #[command(flatten)]
    pub actor: ActingUser,
    /// Where.
    #[command(flatten)]
    pub write: WriteSettings,
}

/// Settings of `remove`.
#[derive(Debug, Clone, Args)]
pub struct RemoveSettings {
    /// Who, and where.
    #[command(flatten)]
    pub member: Writing<MemberArg>,
    /// The acting user.
    #[command(flatten)]
    pub actor: ActingUser,
}

/// Settings of `set-role`.
#[derive(Debug, Clone, Args)]
pub struct SetRoleSettings {
    /// Who, and where.
    #[command(flatten)]
    pub member: Writing<MemberArg>,
    /// The new role.
    #[arg(value_name = "ROLE")]
    pub role: RoleArg,
    /// The acting user.
    #[command(flatten)]
    pub actor: ActingUser,
}

/// A mode of changes of users.
#[derive(Debug, Clone, Args)]
pub struct UnlessLastOwner {
    /// The user.
    #[command(flatten)]
    pub user: UserArg,
    /// Refuse if the user is the last Owner of an organization.
    #[arg(long)]
    pub unless_last_owner: bool,
}

/// Commands that suspend.
#[derive(Debug, Subcommand)]
pub enum SuspendCommand {
    /// Suspend a user.
    User(Writing<UnlessLastOwner>),
    /// Suspend an organization.
    Organization(Writing<OrganizationArg>),
}

/// Commands that resume.
#[derive(Debug, Subcommand)]
pub enum ResumeCommand {
    /// Resume a user.
    User(Writing<UserArg>),
    /// Resume an organization.
    Organization(Writing<OrganizationArg>),
}

/// Commands that delete.
#[derive(Debug, Subcommand)]
pub enum DeleteCommand {
    /// Delete a user.
    User(Writing<UnlessLastOwner>),
    /// Delete an organization.
    Organization {
        /// The organization, and where.
        #[command(flatten)]
        organization: Writing<OrganizationArg>,
        /// Name of the user on whose behalf the change is made. Without it: on behalf of the
        /// platform.
        #[arg(long = "as", value_name = "USER", value_parser = not_empty)]
        acting_user: Option<String>,
    },
}
