//! gRPC's health service: SERVING while the node can answer.

use std::{collections::HashMap, pin::Pin, time::Duration};

use futures::{Stream, stream};
use tokio::time::sleep;
use tonic::{Request, Response, Status};

use super::Services;
use crate::proto::health::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
    health_check_response::ServingStatus, health_server::Health,
};

/// How often is looked for who watches.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Watched = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Health for Services {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        // As etcd, which registers the whole server and no service of its own.
        if !request.get_ref().service.is_empty() {
            return Err(Status::not_found("unknown service"));
        }
        Ok(Response::new(answer(self.serving().await)))
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let statuses = HashMap::from([(String::new(), answer(self.serving().await))]);
        Ok(Response::new(HealthListResponse { statuses }))
    }

    type WatchStream = Watched;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Watched>, Status> {
        let is_known = request.get_ref().service.is_empty();
        let services = self.clone();
        let changes = stream::unfold(None, move |last| {
            let services = services.clone();
            async move {
                loop {
                    let status = match is_known {
                        true => services.serving().await,
                        false => ServingStatus::ServiceUnknown,
                    };
                    if last != Some(status) {
                        return Some((Ok(answer(status)), Some(status)));
                    }
                    tokio::select! {
                        () = sleep(LOOK_EVERY) => {}
                        () = services.stopping.cancelled() => {
                            // What was served is said to be no more; all else ends.
                            if status != ServingStatus::Serving {
                                return None;
                            }
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(changes)))
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

impl Services {
    /// Whether the node answers. One that is full does: it reads, deletes and compacts.
    async fn serving(&self) -> ServingStatus {
        match self.unanswering().await {
            None => ServingStatus::Serving,
            Some(_) => ServingStatus::NotServing,
        }
    }
}
