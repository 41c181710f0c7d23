//! What a gRPC server answers to a call: its messages, as they come, and how it ended.
//! The messages are read where they lie; only the parts of one that came apart are put
//! together.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, Response, StatusCode};
use prost::Message;
use tonic::{Code, Status};

use crate::cache::{Error, FailureKind};

/// Longest message that is taken, in bytes: many times what this service stores under a
/// key.
const MAX_MESSAGE: usize = 256 * 1024;
/// Before each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// How a call ended that went well, as most do.
const OK: &[u8] = b"0";

/// A message of so many bytes as a call sends it.
///
/// # Errors
/// [`FailureKind::Refused`]: it is too long for any call.
pub(super) fn framed(length: usize, put: impl FnOnce(&mut BytesMut)) -> Result<Bytes, Error> {
    let Ok(length_field) = u32::try_from(length) else {
        return Err(Error::new(FailureKind::Refused, "the question is too long"));
    };
    let mut bytes = BytesMut::with_capacity(PREFIX + length);
    bytes.put_u8(0);
    bytes.put_u32(length_field);
    put(&mut bytes);
    Ok(bytes.freeze())
}

/// The answers to a call.
pub(super) struct Answers {
    stream: RecvStream,
    /// What has come and is not taken.
    unread: Bytes,
    /// The call has ended with its head: there is nothing else.
    has_ended: bool,
}

impl Answers {
    /// Of an answer whose head has come.
    ///
    /// # Errors
    /// The call has failed.
    pub(super) fn of(answer: Response<RecvStream>) -> Result<Self, Error> {
        let (head, stream) = answer.into_parts();
        let outcome = outcome(&head.headers);
        let says_how = outcome.is_some();
        outcome.unwrap_or(Ok(()))?;
        if head.status != StatusCode::OK {
            return Err(not_by_grpc(head.status));
        }
        Ok(Self {
            has_ended: says_how && stream.is_end_stream(),
            stream,
            unread: Bytes::new(),
        })
    }

    /// The next message; `None` when the call has ended well.
    ///
    /// # Errors
    /// The call has failed, or the connection; or this is no message.
    pub(super) async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Error> {
        loop {
            if let Some(message) = self.message()? {
                let message = M::decode(message);
                let message =
                    message.map_err(|error| Error::new(FailureKind::Unavailable, error))?;
                return Ok(Some(message));
            }
            if self.has_ended {
                return Ok(None);
            }
            match self.stream.data().await {
                Some(data) => {
                    let data = data.map_err(lost)?;
                    let window = self.stream.flow_control();
                    window.release_capacity(data.len()).map_err(lost)?;
                    self.add(data);
                }
                None => self.end().await?,
            }
        }
    }

    fn add(&mut self, data: Bytes) {
        self.unread = if self.unread.is_empty() {
            data
        } else {
            [&*self.unread, &*data].concat().into()
        };
    }

    async fn end(&mut self) -> Result<(), Error> {
        self.has_ended = true;
        let trailers = self.stream.trailers().await.map_err(lost)?;
        match trailers.as_ref().and_then(outcome) {
            Some(outcome) => outcome?,
            None => {
                return Err(Error::new(
                    FailureKind::Unavailable,
                    "it does not say how it ended",
                ));
            }
        }
        if self.unread.is_empty() {
            Ok(())
        } else {
            Err(Error::new(
                FailureKind::Unavailable,
                "it ended within a message",
            ))
        }
    }

    /// The bytes of the next message, if all of it has come.
    fn message(&mut self) -> Result<Option<Bytes>, Error> {
        let Some(([is_compressed, length @ ..], rest)) = self.unread.split_first_chunk::<PREFIX>()
        else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if *is_compressed != 0 {
            return Err(Error::new(
                FailureKind::Unavailable,
                "its message is compressed",
            ));
        }
        if length > MAX_MESSAGE {
            return Err(Error::new(
                FailureKind::Unavailable,
                "its message is too long",
            ));
        }
        if rest.len() < length {
            return Ok(None);
        }
        self.unread.advance(PREFIX);
        Ok(Some(self.unread.split_to(length)))
    }
}

/// How the call ended, if these say so.
fn outcome(headers: &HeaderMap) -> Option<Result<(), Error>> {
    let code = headers.get(Status::GRPC_STATUS)?;
    if code.as_bytes() == OK {
        return Some(Ok(()));
    }
    Status::from_header_map(headers).map(|status| Err(failed(&status)))
}

/// The server's messages name no keys, values or credentials.
fn failed(status: &Status) -> Error {
    let kind = match status.code() {
        Code::Unauthenticated | Code::PermissionDenied => FailureKind::Credential,
        Code::NotFound => FailureKind::Missing,
        Code::InvalidArgument | Code::FailedPrecondition | Code::Unimplemented => {
            FailureKind::Refused
        }
        _ => FailureKind::Unavailable,
    };
    Error::new(kind, format!("{:?}: {}", status.code(), status.message()))
}

/// Something on the way answered that does not speak gRPC.
fn not_by_grpc(status: StatusCode) -> Error {
    let kind = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FailureKind::Credential,
        StatusCode::NOT_FOUND => FailureKind::Refused,
        _ => FailureKind::Unavailable,
    };
    Error::new(kind, format!("HTTP status {status}"))
}

/// The connection or the call's part of it was lost.
fn lost(error: h2::Error) -> Error {
    Error::new(FailureKind::Unavailable, error)
}

#[cfg(test)]
mod tests {
    use h2::{client, server};
    use http::Request;
    use tokio::io::duplex;

    use super::*;

    /// A server's answer: what it sends first, then the parts of its body, then the
    /// trailers, if it has any.
    struct Answer<'a> {
        head: Response<()>,
        parts: &'a [&'a [u8]],
        trailers: &'a [(&'static str, &'static str)],
    }

    /// As they are where nothing is special.
    fn answer<'a>(parts: &'a [&'a [u8]]) -> Answer<'a> {
        Answer {
            head: Response::new(()),
            parts,
            trailers: &[("grpc-status", "0")],
        }
    }

    fn head(headers: &[(&'static str, &'static str)]) -> Response<()> {
        let mut head = Response::new(());
        head.headers_mut().extend(map(headers));
        head
    }

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let headers = headers.iter();
        let parsed = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        parsed.collect()
    }

    /// The messages, which are texts, that are read of an answer.
    async fn read(answer: Answer<'_>) -> Result<Vec<String>, Error> {
        let (here, there) = duplex(65_536);
        let serving = async {
            let mut connection = server::handshake(there).await.unwrap();
            let (_, mut call) = connection.accept().await.unwrap().unwrap();
            let is_all = answer.parts.is_empty() && answer.trailers.is_empty();
            let mut body = call.send_response(answer.head, is_all).unwrap();
            let mut parts = answer.parts.iter().peekable();
            while let Some(part) = parts.next() {
                let is_last = parts.peek().is_none() && answer.trailers.is_empty();
                body.send_data(Bytes::copy_from_slice(part), is_last)
                    .unwrap();
            }
            if !answer.trailers.is_empty() {
                body.send_trailers(map(answer.trailers)).unwrap();
            }
            while connection.accept().await.is_some() {}
        };
        let asking = async {
            let (mut sender, connection) = client::handshake(here).await.unwrap();
            tokio::spawn(connection);
            let (answer, _) = sender.send_request(Request::new(()), true).unwrap();
            let mut answers = Answers::of(answer.await.unwrap())?;
            let mut texts = Vec::new();
            while let Some(text) = answers.next().await? {
                texts.push(text);
            }
            Ok(texts)
        };
        tokio::select! {
            texts = asking => texts,
            () = serving => panic!("the connection ended"),
        }
    }

    fn message(text: &str) -> Bytes {
        let text = text.to_owned();
        framed(text.encoded_len(), |bytes| text.encode(bytes).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn messages_are_read_however_they_are_cut() {
        for (texts, lengths) in [
            (["", "short", "", "last"], 1..=20),
            (["", "short", &"long".repeat(5000), "last"], 4000..=4020),
        ] {
            let whole = texts.map(message).concat();
            for length in lengths {
                let parts: Vec<_> = whole.chunks(length).collect();
                assert_eq!(read(answer(&parts)).await.unwrap(), texts, "{length}");
            }
        }
        assert!(read(answer(&[])).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn an_answer_that_does_not_end_as_it_should_is_none() {
        let whole = message("text");
        for (trailers, kind) in [
            (
                &[("grpc-status", "14"), ("grpc-message", "busy")][..],
                FailureKind::Unavailable,
            ),
            (&[("grpc-status", "16")], FailureKind::Credential),
            (&[("grpc-status", "5")], FailureKind::Missing),
            (&[("grpc-status", "3")], FailureKind::Refused),
            (&[("grpc-status", "00")], FailureKind::Unavailable),
            (&[("other", "0")], FailureKind::Unavailable),
            (&[], FailureKind::Unavailable),
        ] {
            let parts = [&*whole];
            let answer = Answer {
                trailers,
                ..answer(&parts)
            };
            assert_eq!(read(answer).await.unwrap_err().kind, kind, "{trailers:?}");
        }
        let cut = read(answer(&[&whole[..whole.len() - 1]])).await;
        assert_eq!(cut.unwrap_err().kind, FailureKind::Unavailable);
    }

    #[tokio::test]
    async fn an_answer_that_is_a_head_alone_says_how_the_call_ended() {
        for (status, kind) in [
            ("0", None),
            ("7", Some(FailureKind::Credential)),
            ("5", Some(FailureKind::Missing)),
        ] {
            let answer = Answer {
                head: head(&[("grpc-status", status)]),
                parts: &[],
                trailers: &[],
            };
            let read = read(answer).await;
            assert_eq!(read.err().map(|error| error.kind), kind, "{status}");
        }
    }

    #[tokio::test]
    async fn what_a_head_says_too_early_is_not_believed() {
        let whole = message("text");
        let parts = [&*whole];
        let ok = Answer {
            head: head(&[("grpc-status", "0")]),
            ..answer(&parts)
        };
        assert_eq!(read(ok).await.unwrap(), ["text"]);
        let mut refused = answer(&parts);
        refused.head = head(&[("grpc-status", "16")]);
        *refused.head.status_mut() = StatusCode::BAD_REQUEST;
        assert_eq!(
            read(refused).await.unwrap_err().kind,
            FailureKind::Credential
        );
    }

    #[tokio::test]
    async fn what_is_no_grpc_is_no_answer() {
        for (status, kind) in [
            (StatusCode::FORBIDDEN, FailureKind::Credential),
            (StatusCode::NOT_FOUND, FailureKind::Refused),
            (StatusCode::BAD_GATEWAY, FailureKind::Unavailable),
        ] {
            let mut answer = answer(&[b"<html>"]);
            *answer.head.status_mut() = status;
            assert_eq!(read(answer).await.unwrap_err().kind, kind, "{status}");
        }
    }

    #[tokio::test]
    async fn messages_that_are_compressed_too_long_or_malformed_are_no_answer() {
        for bytes in [
            &[1, 0, 0, 0, 0][..],
            &[0, 0xff, 0, 0, 0],
            &[0, 0, 0, 0, 2, 0x0a, 0x05],
            b"<html>",
        ] {
            let error = read(answer(&[bytes])).await.unwrap_err();
            assert_eq!(error.kind, FailureKind::Unavailable, "{bytes:?}");
        }
    }
}
