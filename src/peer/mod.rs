//! Calls between replicas: their addresses, their proof of identity, and the client.
//!
//! The replica directory has the fingerprint of each replica's certificate, and a token. A client
//! accepts only the certificate with that fingerprint, so that nobody else can acknowledge a fence.
//! A server accepts only calls with its token, which only readers of the table know.

mod address;
mod client;
mod identity;
mod ids;
mod pinned;
mod wire;

pub use self::{
    address::{Fingerprint, PeerAddress, PeerToken},
    client::{Fence, PeerClient, PeerError},
    identity::{IdentityError, PeerIdentity},
    ids::{Incarnation, WriteId},
    wire::{InvalidKeys, MAX_KEYS, keys_from_wire},
};
