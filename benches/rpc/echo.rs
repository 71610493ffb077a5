//! What gRPC costs by itself: the same service, answered at once with messages of the same size.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use pairdb::proto::key_value_server::{KeyValue, KeyValueServer};
use pairdb::proto::pipeline_request::Operation;
use pairdb::proto::{self, batch_read_result, batch_write_result, pipeline_response};
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// What a real node answered, to be said again.
#[derive(Clone, Debug)]
pub struct Sample {
    pub read: proto::ReadResponse,
    pub write: proto::WriteResponse,
}

/// The answers by tenant.
#[derive(Clone, Debug)]
pub struct Echo(pub Arc<BTreeMap<String, Sample>>);

impl Echo {
    /// Serves on a free port of loopback for as long as the runtime lives.
    pub async fn serve(self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = tonic::transport::Server::builder().add_service(KeyValueServer::new(self));
        tokio::spawn(server.serve_with_incoming(incoming));
        address
    }

    fn sample(&self, tenant: &str) -> Result<&Sample, Status> {
        self.0.get(tenant).ok_or_else(|| Status::not_found("no such tenant"))
    }

    fn answer(
        &self,
        request: Result<proto::PipelineRequest, Status>,
    ) -> Result<proto::PipelineResponse, Status> {
        use pipeline_response::Result as Answer;
        let request = request?;
        let result = match &request.operation {
            Some(Operation::Read(read)) => Answer::Read(self.sample(&read.tenant)?.read.clone()),
            Some(Operation::Write(write)) => {
                Answer::Written(self.sample(&write.tenant)?.write.clone())
            }
            Some(Operation::Delete(_)) | None => return Err(Status::unimplemented("not measured")),
        };
        Ok(proto::PipelineResponse { tag: request.tag, result: Some(result) })
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl KeyValue for Echo {
    type PipelineStream = Answers<proto::PipelineResponse>;
    type ScanStream = Answers<proto::ScanResponse>;

    async fn write(
        &self,
        request: Request<proto::WriteRequest>,
    ) -> Result<Response<proto::WriteResponse>, Status> {
        Ok(Response::new(self.sample(&request.get_ref().tenant)?.write.clone()))
    }

    async fn read(
        &self,
        request: Request<proto::ReadRequest>,
    ) -> Result<Response<proto::ReadResponse>, Status> {
        Ok(Response::new(self.sample(&request.get_ref().tenant)?.read.clone()))
    }

    async fn batch_write(
        &self,
        request: Request<proto::BatchWriteRequest>,
    ) -> Result<Response<proto::BatchWriteResponse>, Status> {
        let request = request.get_ref();
        let written =
            batch_write_result::Result::Written(self.sample(&request.tenant)?.write.clone());
        let result = proto::BatchWriteResult { result: Some(written) };
        let results = request.mutations.iter().map(|_| result.clone()).collect();
        Ok(Response::new(proto::BatchWriteResponse { results }))
    }

    async fn batch_read(
        &self,
        request: Request<proto::BatchReadRequest>,
    ) -> Result<Response<proto::BatchReadResponse>, Status> {
        let request = request.get_ref();
        let row = batch_read_result::Result::Row(self.sample(&request.tenant)?.read.clone());
        let result = proto::BatchReadResult { result: Some(row) };
        let results = request.keys.iter().map(|_| result.clone()).collect();
        Ok(Response::new(proto::BatchReadResponse { results }))
    }

    async fn pipeline(
        &self,
        request: Request<Streaming<proto::PipelineRequest>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let echo = self.clone();
        let answers = request.into_inner().map(move |request| echo.answer(request));
        Ok(Response::new(Box::pin(answers)))
    }

    async fn delete(
        &self,
        _request: Request<proto::DeleteRequest>,
    ) -> Result<Response<proto::DeleteResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn scan(
        &self,
        _request: Request<proto::ScanRequest>,
    ) -> Result<Response<Self::ScanStream>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn get_key_range(
        &self,
        _request: Request<proto::GetKeyRangeRequest>,
    ) -> Result<Response<proto::GetKeyRangeResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }

    async fn topology(
        &self,
        _request: Request<proto::TopologyRequest>,
    ) -> Result<Response<proto::TopologyResponse>, Status> {
        Err(Status::unimplemented("not measured"))
    }
}
