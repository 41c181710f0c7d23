//! Momento's wire protocol: the calls of the SDK for scalar items and for the management of
//! caches. The other calls are UNIMPLEMENTED.

use std::{future::ready, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt as _, stream};
use momento_protos::{
    cache_client::{
        self as scs, ECacheResult, scs_server::Scs, set_if_request::Condition, set_if_response,
    },
    control_client::{self as control, scs_control_server::ScsControl},
};
use tonic::{Request, Response, Status};

use super::{DataCall, EmbeddedMomento, Fate, Gate, items::Items};

type Reply<T> = Result<Response<T>, Status>;
type ReplyStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Implements a service: some calls as written, the others as UNIMPLEMENTED.
macro_rules! service {
    (
        impl $service:ident from $messages:ident { $($implemented:tt)* }
        unimplemented { $($name:ident($request:ident) -> $response:ident;)* }
    ) => {
        #[tonic::async_trait]
        impl $service for EmbeddedMomento {
            $($implemented)*

            $(async fn $name(
                &self,
                _: Request<$messages::$request>,
            ) -> Reply<$messages::$response> {
                Err(Status::unimplemented(concat!(
                    "the embedded server has no ",
                    stringify!($name)
                )))
            })*
        }
    };
}

impl EmbeddedMomento {
    /// Serves a call with the fate that the gate decides, also after its caller has
    /// disconnected. A call that is served twice returns the first response.
    async fn through_gate<T: Send + 'static>(
        &self,
        call: DataCall,
        keys: Vec<Vec<u8>>,
        serve: impl Fn(Fate) -> Result<T, Status> + Send + Sync + 'static,
    ) -> Result<T, Status> {
        let gate = self.gate.clone();
        let served = async move {
            let fate = gate.pass(call, &borrowed(&keys)).await?;
            let response = serve(fate);
            match fate {
                Fate::Unanswered => return Err(lost()),
                Fate::ServedTwice => drop(serve(fate)),
                Fate::Slow(delay) => tokio::time::sleep(delay).await,
                Fate::Served | Fate::Cut(_) => {}
            }
            response
        };
        let served = tokio::spawn(served).await;
        served.unwrap_or_else(|_| Err(Status::internal("the call ended without a response")))
    }
}

fn lost() -> Status {
    Status::unavailable("the response was lost")
}

service! {
    impl Scs from scs {
        type GetBatchStream = ReplyStream<scs::GetResponse>;
        type SetBatchStream = ReplyStream<scs::SetResponse>;

        async fn get(&self, request: Request<scs::GetRequest>) -> Reply<scs::GetResponse> {
            let (items, lag) = (self.admit(&request)?, self.lag(&request));
            let request = request.into_inner();
            let key = request.cache_key.clone();
            let serve = move |_| Ok(get(&items, &request.cache_key, lag));
            Ok(Response::new(self.through_gate(DataCall::Get, vec![key], serve).await?))
        }

        async fn get_batch(
            &self,
            request: Request<scs::GetBatchRequest>,
        ) -> Reply<Self::GetBatchStream> {
            let (items, lag) = (self.admit(&request)?, self.lag(&request));
            let keys = request.into_inner().items.into_iter().map(|item| item.cache_key);
            let keys: Vec<_> = keys.collect();
            let wanted = keys.clone();
            let serve = move |fate| {
                let responses = match fate {
                    Fate::Cut(responses) => responses,
                    _ => usize::MAX,
                };
                let found = wanted.iter().take(responses).map(|key| Ok(get(&items, key, lag)));
                Ok(found.collect::<Vec<_>>())
            };
            let found = self.through_gate(DataCall::GetBatch, keys, serve).await?;
            let listener = Listener(Some(self.gate.clone()));
            let end = stream::once(listener.stay()).filter_map(|()| ready(None));
            Ok(Response::new(stream::iter(found).chain(end).boxed()))
        }

        async fn set(&self, request: Request<scs::SetRequest>) -> Reply<scs::SetResponse> {
            let items = self.admit(&request)?;
            let request = request.into_inner();
            let key = request.cache_key.clone();
            let serve = move |_| set(&items, request.clone());
            Ok(Response::new(self.through_gate(DataCall::Set, vec![key], serve).await?))
        }

        async fn set_batch(
            &self,
            request: Request<scs::SetBatchRequest>,
        ) -> Reply<Self::SetBatchStream> {
            let items = self.admit(&request)?;
            let sets = request.into_inner().items;
            let keys: Vec<_> = sets.iter().map(|set| set.cache_key.clone()).collect();
            self.gate.pass(DataCall::SetBatch, &borrowed(&keys)).await?;
            let responses = stream::iter(sets).map(move |request| set(&items, request));
            Ok(Response::new(responses.boxed()))
        }

        async fn set_if(&self, request: Request<scs::SetIfRequest>) -> Reply<scs::SetIfResponse> {
            let items = self.admit(&request)?;
            let request = request.into_inner();
            let condition = request
                .condition
                .ok_or_else(|| Status::invalid_argument("no condition"))?;
            let key = request.cache_key.clone();
            let serve = move |_| {
                items.set_if(
                    request.cache_key.clone(),
                    request.cache_body.clone(),
                    request.ttl_milliseconds,
                    |found| holds(&condition, found),
                )
            };
            let is_stored = self.through_gate(DataCall::SetIf, vec![key], serve).await?;
            let result = if is_stored {
                set_if_response::Result::Stored(set_if_response::Stored {})
            } else {
                set_if_response::Result::NotStored(set_if_response::NotStored {})
            };
            Ok(Response::new(scs::SetIfResponse {
                result: Some(result),
            }))
        }

        async fn delete(&self, request: Request<scs::DeleteRequest>) -> Reply<scs::DeleteResponse> {
            let items = self.admit(&request)?;
            let request = request.into_inner();
            let key = request.cache_key.clone();
            let serve = move |_| {
                items.delete(&request.cache_key);
                Ok(scs::DeleteResponse {})
            };
            Ok(Response::new(self.through_gate(DataCall::Delete, vec![key], serve).await?))
        }
    }
    unimplemented {
        get_with_hash(GetWithHashRequest) -> GetWithHashResponse;
        set_if_hash(SetIfHashRequest) -> SetIfHashResponse;
        set_if_not_exists(SetIfNotExistsRequest) -> SetIfNotExistsResponse;
        keys_exist(KeysExistRequest) -> KeysExistResponse;
        increment(IncrementRequest) -> IncrementResponse;
        update_ttl(UpdateTtlRequest) -> UpdateTtlResponse;
        item_get_ttl(ItemGetTtlRequest) -> ItemGetTtlResponse;
        item_get_type(ItemGetTypeRequest) -> ItemGetTypeResponse;
        dictionary_get(DictionaryGetRequest) -> DictionaryGetResponse;
        dictionary_fetch(DictionaryFetchRequest) -> DictionaryFetchResponse;
        dictionary_set(DictionarySetRequest) -> DictionarySetResponse;
        dictionary_increment(DictionaryIncrementRequest) -> DictionaryIncrementResponse;
        dictionary_delete(DictionaryDeleteRequest) -> DictionaryDeleteResponse;
        dictionary_length(DictionaryLengthRequest) -> DictionaryLengthResponse;
        set_fetch(SetFetchRequest) -> SetFetchResponse;
        set_sample(SetSampleRequest) -> SetSampleResponse;
        set_union(SetUnionRequest) -> SetUnionResponse;
        set_difference(SetDifferenceRequest) -> SetDifferenceResponse;
        set_contains(SetContainsRequest) -> SetContainsResponse;
        set_length(SetLengthRequest) -> SetLengthResponse;
        set_pop(SetPopRequest) -> SetPopResponse;
        list_push_front(ListPushFrontRequest) -> ListPushFrontResponse;
        list_push_back(ListPushBackRequest) -> ListPushBackResponse;
        list_pop_front(ListPopFrontRequest) -> ListPopFrontResponse;
        list_pop_back(ListPopBackRequest) -> ListPopBackResponse;
        list_erase(ListEraseRequest) -> ListEraseResponse;
        list_remove(ListRemoveRequest) -> ListRemoveResponse;
        list_fetch(ListFetchRequest) -> ListFetchResponse;
        list_length(ListLengthRequest) -> ListLengthResponse;
        list_concatenate_front(ListConcatenateFrontRequest) -> ListConcatenateFrontResponse;
        list_concatenate_back(ListConcatenateBackRequest) -> ListConcatenateBackResponse;
        list_retain(ListRetainRequest) -> ListRetainResponse;
        sorted_set_put(SortedSetPutRequest) -> SortedSetPutResponse;
        sorted_set_fetch(SortedSetFetchRequest) -> SortedSetFetchResponse;
        sorted_set_get_score(SortedSetGetScoreRequest) -> SortedSetGetScoreResponse;
        sorted_set_remove(SortedSetRemoveRequest) -> SortedSetRemoveResponse;
        sorted_set_increment(SortedSetIncrementRequest) -> SortedSetIncrementResponse;
        sorted_set_get_rank(SortedSetGetRankRequest) -> SortedSetGetRankResponse;
        sorted_set_length(SortedSetLengthRequest) -> SortedSetLengthResponse;
        sorted_set_length_by_score(SortedSetLengthByScoreRequest) -> SortedSetLengthByScoreResponse;
        sorted_set_union_store(SortedSetUnionStoreRequest) -> SortedSetUnionStoreResponse;
    }
}

service! {
    impl ScsControl from control {
        async fn create_cache(
            &self,
            request: Request<control::CreateCacheRequest>,
        ) -> Reply<control::CreateCacheResponse> {
            self.authenticate(&request)?;
            self.caches.create(request.into_inner().cache_name)?;
            Ok(Response::new(control::CreateCacheResponse {}))
        }

        async fn delete_cache(
            &self,
            request: Request<control::DeleteCacheRequest>,
        ) -> Reply<control::DeleteCacheResponse> {
            self.authenticate(&request)?;
            self.caches.delete(&request.into_inner().cache_name)?;
            Ok(Response::new(control::DeleteCacheResponse {}))
        }

        async fn list_caches(
            &self,
            request: Request<control::ListCachesRequest>,
        ) -> Reply<control::ListCachesResponse> {
            self.authenticate(&request)?;
            let names = self.caches.names().into_iter();
            let cache = names.map(|cache_name| control::Cache {
                cache_name,
                ..control::Cache::default()
            });
            Ok(Response::new(control::ListCachesResponse {
                cache: cache.collect(),
                next_token: String::new(),
            }))
        }

        async fn flush_cache(
            &self,
            request: Request<control::FlushCacheRequest>,
        ) -> Reply<control::FlushCacheResponse> {
            self.authenticate(&request)?;
            self.caches.get(&request.into_inner().cache_name)?.clear();
            Ok(Response::new(control::FlushCacheResponse {}))
        }
    }
    unimplemented {
        create_signing_key(CreateSigningKeyRequest) -> CreateSigningKeyResponse;
        revoke_signing_key(RevokeSigningKeyRequest) -> RevokeSigningKeyResponse;
        list_signing_keys(ListSigningKeysRequest) -> ListSigningKeysResponse;
        create_index(CreateIndexRequest) -> CreateIndexResponse;
        delete_index(DeleteIndexRequest) -> DeleteIndexResponse;
        list_indexes(ListIndexesRequest) -> ListIndexesResponse;
    }
}

fn borrowed(keys: &[Vec<u8>]) -> Vec<&[u8]> {
    keys.iter().map(Vec::as_slice).collect()
}

/// Receiver of the responses of a GetBatch.
struct Listener(Option<Arc<dyn Gate>>);

impl Listener {
    /// Waits for the end of the stream.
    async fn stay(mut self) {
        let wait = self.0.as_ref().map(|gate| gate.end_after());
        if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
            tokio::time::sleep(wait).await;
        }
        self.0 = None;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.left();
        }
    }
}

fn get(items: &Items, key: &[u8], lag: Duration) -> scs::GetResponse {
    let (result, cache_body) = match items.get(key, lag) {
        Some(value) => (ECacheResult::Hit, value),
        None => (ECacheResult::Miss, Vec::new()),
    };
    scs::GetResponse {
        result: result.into(),
        cache_body,
        message: String::new(),
    }
}

fn set(items: &Items, request: scs::SetRequest) -> Result<scs::SetResponse, Status> {
    items.set_if(
        request.cache_key,
        request.cache_body,
        request.ttl_milliseconds,
        |_| true,
    )?;
    Ok(scs::SetResponse {
        result: ECacheResult::Ok.into(),
        message: String::new(),
    })
}

fn holds(condition: &Condition, found: Option<&[u8]>) -> bool {
    match condition {
        Condition::Present(_) => found.is_some(),
        Condition::Absent(_) => found.is_none(),
        Condition::Equal(other) => found == Some(&*other.value_to_check),
        Condition::NotEqual(other) => found != Some(&*other.value_to_check),
        Condition::AbsentOrEqual(other) => found.is_none_or(|found| found == other.value_to_check),
        Condition::PresentAndNotEqual(other) => {
            found.is_some_and(|found| found != other.value_to_check)
        }
    }
}
