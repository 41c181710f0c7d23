//! Page tokens: the end of a page, opaque to callers, and signed for one list.

use std::{collections::BTreeMap, fmt::Debug};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::Error;
use crate::store::{self, DynamoDb, ListPosition, Registers as _};

/// The register with the key that signs tokens.
const REGISTER: &str = "page-tokens";
const KEY: &str = "key";
/// Bytes of a token's signature.
const MAC_LEN: usize = 16;
/// Longest accepted token, in characters.
const MAX_LEN: usize = 1024;

/// The name of a list, with its parameters.
#[derive(Debug, Clone)]
pub(super) struct ListName(String);

impl ListName {
    pub(super) fn new(kind: &str, of: &str) -> Self {
        Self(format!("{kind}/{of}"))
    }

    /// The same list with a filter or an order, which is part of its name.
    pub(super) fn with<T: Debug + Default + PartialEq>(self, parameter: &T) -> Self {
        if *parameter == T::default() {
            return self;
        }
        Self(format!("{}\n{parameter:?}", self.0))
    }
}

/// The text is not a page token of this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a token of an earlier page of this list")]
pub struct NoPageToken;

/// Signs and verifies page tokens.
pub(super) struct PageTokens {
    table: DynamoDb,
    key: OnceCell<String>,
}

impl PageTokens {
    pub(super) fn new(table: DynamoDb) -> Self {
        Self {
            table,
            key: OnceCell::new(),
        }
    }

    /// The position in a token. An empty token is the beginning.
    pub(super) async fn open(
        &self,
        list: &ListName,
        token: &str,
    ) -> Result<Option<ListPosition>, Error> {
        if token.is_empty() {
            return Ok(None);
        }
        let signing = self.signing(list).await?;
        let opened = opened(signing, token);
        opened
            .map(Some)
            .ok_or(Error::Refused(super::Refusal::NoPageToken))
    }

    /// The token of a position. Empty at the end of the list.
    pub(super) async fn seal(
        &self,
        list: &ListName,
        position: Option<ListPosition>,
    ) -> Result<String, Error> {
        let Some(ListPosition(position)) = position else {
            return Ok(String::new());
        };
        let signing = self.signing(list).await?;
        let mac = signing.chain_update(&position).finalize().into_bytes();
        let token = [&mac[..MAC_LEN], position.as_bytes()].concat();
        Ok(BASE64_URL_SAFE_NO_PAD.encode(token))
    }

    async fn signing(&self, list: &ListName) -> Result<Hmac<Sha256>, Error> {
        let key = self.key.get_or_try_init(|| self.load_key()).await;
        let key = key.map_err(super::store_failed)?;
        let length = u64::try_from(list.0.len()).unwrap_or(u64::MAX);
        let signing = Hmac::<Sha256>::new_from_slice(key.as_bytes()).map_err(|_| {
            super::store_failed(store::Error::new(
                store::ErrorKind::Malformed,
                "the key of page tokens",
            ))
        })?;
        Ok(signing
            .chain_update(length.to_be_bytes())
            .chain_update(&list.0))
    }

    /// Reads the key that all replicas share, or creates it.
    async fn load_key(&self) -> Result<String, store::Error> {
        loop {
            let register = self.table.read_register(REGISTER).await?;
            if let Some(key) = register.and_then(|mut register| register.values.remove(KEY)) {
                return Ok(key);
            }
            let key = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            let values = BTreeMap::from([(KEY.to_owned(), key)]);
            self.table.swap_register(REGISTER, None, &values).await?;
        }
    }
}

fn opened(signing: Hmac<Sha256>, token: &str) -> Option<ListPosition> {
    let bytes = (token.len() <= MAX_LEN).then(|| BASE64_URL_SAFE_NO_PAD.decode(token))?;
    let bytes = bytes.ok()?;
    let (mac, position) = bytes.split_at_checked(MAC_LEN)?;
    signing
        .chain_update(position)
        .verify_truncated_left(mac)
        .ok()?;
    String::from_utf8(position.to_vec()).ok().map(ListPosition)
}
