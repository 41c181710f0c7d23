//! The export of all records, in lines of JSON on standard output.

use std::io::{BufWriter, Write};

use super::{
    connection::ConnectionError,
    contract::Contract,
    records::Exported,
    typed::{CallError, Client},
};
use crate::{config::ExportSettings, proto::account_v1 as pb};

/// Most users or organizations of a page.
const PAGE: i32 = 250;
/// Most members of a page.
const MEMBERS: i32 = 1000;

/// The failure of an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// There is no connection.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The service rejects a call.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A record cannot be written.
    #[error("a record cannot be written: {0}")]
    Record(String),
    /// The output cannot be written.
    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

/// Writes all users, then all organizations, then the memberships of each organization. Changes meanwhile may
/// be included or not.
///
/// # Errors
/// See [`ExportError`].
pub async fn run(settings: &ExportSettings) -> Result<(), ExportError> {
    let client = Client::connect(&settings.connection).await?;
    let contract = Contract::read().map_err(ExportError::Record)?;
    let mut output = BufWriter::new(std::io::stdout());
    let mut write = |record: Exported| -> Result<(), ExportError> {
        let line = record.line(&contract).map_err(ExportError::Record)?;
        Ok(writeln!(output, "{line}")?)
    };
    let mut request = pb::ListUsersRequest {
        page_size: PAGE,
        order_by: "username".to_owned(),
        ..pb::ListUsersRequest::default()
    };
    loop {
        let page = client.list_users(&request).await?;
        page.users
            .into_iter()
            .try_for_each(|user| write(Exported::User(user)))?;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    let mut names = Vec::new();
    let mut request = pb::ListOrganizationsRequest {
        page_size: PAGE,
        order_by: "organization_name".to_owned(),
        ..pb::ListOrganizationsRequest::default()
    };
    loop {
        let page = client.list_organizations(&request).await?;
        for organization in page.organizations {
            names.push(organization.organization_name.clone());
            write(Exported::Organization(organization))?;
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    for organization_name in names {
        let mut request = pb::ListOrganizationMembersRequest {
            organization_name,
            page_size: MEMBERS,
            ..pb::ListOrganizationMembersRequest::default()
        };
        loop {
            let page = match client.list_organization_members(&request).await {
                // Deleted meanwhile.
                Err(CallError(status)) if status.code() == tonic::Code::NotFound => break,
                page => page?,
            };
            page.memberships
                .into_iter()
                .try_for_each(|it| write(Exported::Membership(it)))?;
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
    }
    output.flush()?;
    Ok(())
}
