//! Decodes the check facts of a cache entry without allocating: the hottest code of the
//! service. [`super::Entry::decode`] defines the format.

use std::ops::RangeInclusive;

use super::{Nonce, SCHEMA, state_from_wire};
use crate::{
    domain::{CheckFacts, Incarnation, Key, MembershipFacts, Role, Timestamp, Uid},
    proto::cache_v1 as wire,
};

/// Fields of `account.cache.v1.Entry`.
mod entry {
    pub(super) const SCHEMA: u8 = 1;
    pub(super) const TAG: u8 = 2;
    pub(super) const NONCE: u8 = 3;
    pub(super) const KEY: u8 = 4;
    pub(super) const READ_TIME: u8 = 5;
    pub(super) const USER: u8 = 6;
    pub(super) const ORGANIZATION: u8 = 7;
    pub(super) const MEMBERSHIP: u8 = 8;
}

/// Numbers of the fields `uid` and `suspended` of `account.cache.v1.User`.
const OF_USER: [u8; 2] = [4, 8];
/// The same for `account.cache.v1.Organization`.
const OF_ORGANIZATION: [u8; 2] = [3, 7];

/// Decodes the check facts of an entry, and the time of the table read. `None` for leases, fences,
/// and bytes that are not an entry of this format for this key. Other fields are skipped, and may
/// be invalid.
pub(in crate::coherence) fn decode_facts(
    bytes: &[u8],
    cache_key: &[u8],
    key: &Key,
) -> Option<(Option<CheckFacts>, Timestamp)> {
    read(Fields(bytes), cache_key, key).ok()
}

/// The bytes are not the expected field or entry.
#[derive(Debug, PartialEq, Eq)]
struct Other;

fn read(
    mut fields: Fields<'_>,
    cache_key: &[u8],
    key: &Key,
) -> Result<(Option<CheckFacts>, Timestamp), Other> {
    if fields.number(entry::SCHEMA)? != u64::from(SCHEMA) {
        return Err(Other);
    }
    let tag = fields.number(entry::TAG)?;
    let nonce = fields.bytes(entry::NONCE)?;
    if nonce.is_none_or(|nonce| nonce.len() != size_of::<Nonce>()) {
        return Err(Other);
    }
    if fields.bytes(entry::KEY)? != Some(cache_key) {
        return Err(Other);
    }
    let read_time = fields.number(entry::READ_TIME)?;
    let kind = match key {
        Key::User(_) => entry::USER,
        Key::Organization(_) => entry::ORGANIZATION,
        Key::Membership(..) => entry::MEMBERSHIP,
    };
    let item = fields.bytes(kind)?.map(Fields);
    fields.end(entry::MEMBERSHIP)?;
    let tag = i32::try_from(tag).map_err(|_| Other)?;
    let facts = match (wire::Tag::try_from(tag), item) {
        (Ok(wire::Tag::Present), Some(item)) => Some(match key {
            Key::User(_) => CheckFacts::User(incarnation(item, OF_USER)?),
            Key::Organization(_) => CheckFacts::Organization(incarnation(item, OF_ORGANIZATION)?),
            Key::Membership(..) => CheckFacts::Membership(membership(item)?),
        }),
        (Ok(wire::Tag::Absent), None) => None,
        _ => return Err(Other),
    };
    Ok((facts, Timestamp(read_time.cast_signed())))
}

/// Decodes the incarnation of an `account.cache.v1.User` or `Organization`, by the numbers of its
/// fields `uid` and `suspended`.
#[inline]
fn incarnation(mut fields: Fields<'_>, [uid, suspended]: [u8; 2]) -> Result<Incarnation, Other> {
    fields.skip(1..=uid - 1)?;
    let found_uid = fields.uid(uid)?;
    fields.skip(uid + 1..=suspended - 1)?;
    let state = state_from_wire(fields.number(suspended)? != 0);
    fields.end(suspended)?;
    Ok(Incarnation {
        uid: found_uid,
        state,
    })
}

/// Decodes the facts of an `account.cache.v1.Membership`.
fn membership(mut fields: Fields<'_>) -> Result<MembershipFacts, Other> {
    fields.skip(1..=2)?;
    let role = match fields.bytes(3)? {
        None => None,
        Some(role) => Some(Role::from_bytes(role).ok_or(Other)?),
    };
    fields.skip(4..=4)?;
    let organization_uid = fields.uid(5)?;
    let member_uid = fields.uid(6)?;
    fields.end(6)?;
    Ok(MembershipFacts {
        role,
        organization_uid,
        member_uid,
    })
}

/// The fields of a protobuf message, written and read in the order of their numbers. Fields that
/// were not read are checked at the end, which rejects fields out of order.
struct Fields<'a>(&'a [u8]);

/// Wire types: the lowest bits of a field's tag.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

impl<'a> Fields<'a> {
    /// Reads a number. A missing field is zero.
    #[inline]
    fn number(&mut self, field: u8) -> Result<u64, Other> {
        if self.is_next(field, VARINT) {
            if let [number @ ..0x80, rest @ ..] = self.0 {
                self.0 = rest;
                return Ok(u64::from(*number));
            }
            self.varint()
        } else {
            Ok(0)
        }
    }

    /// Reads a text or a message, if the field is present.
    #[inline]
    fn bytes(&mut self, field: u8) -> Result<Option<&'a [u8]>, Other> {
        if self.is_next(field, BYTES) {
            self.delimited().map(Some)
        } else {
            Ok(None)
        }
    }

    #[inline]
    fn uid(&mut self, field: u8) -> Result<Option<Uid>, Other> {
        match self.bytes(field)? {
            Some(text) => Uid::from_utf8(text).map_err(|_| Other),
            None => Ok(None),
        }
    }

    /// Skips texts and messages, repeated ones included.
    #[inline]
    fn skip(&mut self, fields: RangeInclusive<u8>) -> Result<(), Other> {
        while let [head, rest @ ..] = self.0
            && head & 7 == BYTES
            && fields.contains(&(head >> 3))
        {
            self.0 = rest;
            self.delimited()?;
        }
        Ok(())
    }

    /// Checks that the remaining fields have greater numbers than `last`, as later versions
    /// may add.
    #[inline]
    fn end(mut self, last: u8) -> Result<(), Other> {
        let mut next = u64::from(last) + 1;
        while !self.0.is_empty() {
            let head = self.varint()?;
            if head >> 3 < next || head > u64::from(u32::MAX) {
                return Err(Other);
            }
            next = head >> 3;
            match u8::try_from(head & 7) {
                Ok(VARINT) => self.varint().map(drop)?,
                Ok(FIXED64) => self.take(8).map(drop)?,
                Ok(BYTES) => self.delimited().map(drop)?,
                Ok(FIXED32) => self.take(4).map(drop)?,
                _ => return Err(Other),
            }
        }
        Ok(())
    }

    /// Consumes the tag of this field, if it is next.
    #[inline]
    fn is_next(&mut self, field: u8, encoding: u8) -> bool {
        match self.0.split_first() {
            Some((head, rest)) if *head == field << 3 | encoding => {
                self.0 = rest;
                true
            }
            _ => false,
        }
    }

    #[inline]
    fn delimited(&mut self) -> Result<&'a [u8], Other> {
        // Nearly all lengths have one byte.
        if let [length @ ..0x80, rest @ ..] = self.0
            && let Some((bytes, rest)) = rest.split_at_checked(usize::from(*length))
        {
            self.0 = rest;
            return Ok(bytes);
        }
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| Other)?)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Other> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Other)?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64, Other> {
        let (mut number, mut shift) = (0, 0);
        while let [byte, rest @ ..] = self.0
            && shift < u64::BITS
        {
            self.0 = rest;
            // The tenth byte has room for one bit.
            if shift == 63 && *byte > 1 {
                return Err(Other);
            }
            number |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(number);
            }
            shift += 7;
        }
        Err(Other)
    }
}

#[cfg(test)]
mod tests;
