//! Page tokens: the end of a page, encrypted for one list. The position may name a record that the
//! caller may not see.

use std::{collections::BTreeMap, fmt::Debug};

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    error::Unspecified,
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::Error;
use crate::store::{self, DynamoDb, ListPosition, Registers as _};

/// The register with the text from which the key of tokens is derived.
const REGISTER: &str = "page-tokens";
const KEY: &str = "key";
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

/// Encrypts and decrypts page tokens.
pub(super) struct PageTokens {
    table: DynamoDb,
    key: OnceCell<LessSafeKey>,
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
        let opened = decrypt(self.key().await?, list, token);
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
        let Some(position) = position else {
            return Ok(String::new());
        };
        let sealed = encrypt(self.key().await?, list, position);
        sealed.map_err(|_| malformed_key())
    }

    async fn key(&self) -> Result<&LessSafeKey, Error> {
        let key = self.key.get_or_try_init(|| self.load_key()).await;
        key.map_err(super::store_failed)
    }

    /// Reads the key that all replicas share, or creates it.
    async fn load_key(&self) -> Result<LessSafeKey, store::Error> {
        loop {
            let register = self.table.read_register(REGISTER).await?;
            if let Some(key) = register.and_then(|mut register| register.values.remove(KEY)) {
                let key = UnboundKey::new(&AES_256_GCM_SIV, &Sha256::digest(key));
                let malformed = |_| store::Error::new(store::ErrorKind::Malformed, NO_KEY);
                return key.map(LessSafeKey::new).map_err(malformed);
            }
            let key = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
            let values = BTreeMap::from([(KEY.to_owned(), key)]);
            self.table.swap_register(REGISTER, None, &values).await?;
        }
    }
}

const NO_KEY: &str = "the key of page tokens";

fn malformed_key() -> Error {
    super::store_failed(store::Error::new(store::ErrorKind::Malformed, NO_KEY))
}

/// The same nonce for all tokens: AES-GCM-SIV only reveals then that two tokens are equal.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; NONCE_LEN])
}

fn encrypt(
    key: &LessSafeKey,
    list: &ListName,
    ListPosition(position): ListPosition,
) -> Result<String, Unspecified> {
    let mut bytes = position.into_bytes();
    key.seal_in_place_append_tag(nonce(), Aad::from(&list.0), &mut bytes)?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(bytes))
}

fn decrypt(key: &LessSafeKey, list: &ListName, token: &str) -> Option<ListPosition> {
    let bytes = (token.len() <= MAX_LEN).then(|| BASE64_URL_SAFE_NO_PAD.decode(token))?;
    let mut bytes = bytes.ok()?;
    let position = key.open_in_place(nonce(), Aad::from(&list.0), &mut bytes);
    let position = position.ok()?.to_vec();
    String::from_utf8(position).ok().map(ListPosition)
}
