//! Calls of any method with messages that are known by their descriptors alone, by callers of each class.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bonafide_identity::{SpiffeId, TrustDomain};
use bonafide_pki::tls::{PeerCheck, Svid, SvidHolder, TrustStore, client_config, server_name};
use bonafide_pki::{KeyType, PrivateKey, TrustRoots, agent_csr};
use bonafide_proto::convert::denial_reason;
use data_encoding::BASE64;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde_json::{Map, Value, json};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

pub(super) static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(bonafide_proto::FILE_DESCRIPTOR_SET).unwrap());

/// No answer takes so long; streams that do not end are cut here.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the server is.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) socket: PathBuf,
    pub(super) address: String,
}

/// The classes of callers, and one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Caller {
    Local,
    Anonymous,
    Agent,
    Banned,
    Evicted,
    Admin,
    Downstream,
    Member,
}

impl Caller {
    pub(super) const ALL: [Self; 8] = [
        Self::Local,
        Self::Anonymous,
        Self::Agent,
        Self::Banned,
        Self::Evicted,
        Self::Admin,
        Self::Downstream,
        Self::Member,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Anonymous => "anonymous",
            Self::Agent => "agent",
            Self::Banned => "banned",
            Self::Evicted => "evicted",
            Self::Admin => "admin",
            Self::Downstream => "downstream",
            Self::Member => "member",
        }
    }
}

/// A channel for each caller.
pub(super) struct Callers {
    channels: BTreeMap<Caller, Channel>,
}

impl Callers {
    /// Makes the callers: agents attest with join tokens, workloads get their SVIDs minted.
    pub(super) async fn introduce(target: &Target) -> Self {
        let local = local(target).await;
        let bundle = one(&local, "spire.api.server.bundle.v1.Bundle/GetBundle", json!({})).await;
        let roots: Vec<Vec<u8>> = bundle["x509_authorities"]
            .as_array()
            .unwrap()
            .iter()
            .map(|authority| BASE64.decode(authority["asn1"].as_str().unwrap().as_bytes()).unwrap())
            .collect();
        let td = TrustDomain::parse("example.org").unwrap();
        let trust = TrustStore::empty();
        let roots = TrustRoots::from_der(roots.iter().map(Vec::as_slice)).unwrap();
        trust.set_trust_domain(&td, &Arc::new(roots));

        let anonymous = remote(target, &trust, None).await;
        let mut channels = BTreeMap::new();
        for (caller, token) in
            [(Caller::Agent, "tok-agent"), (Caller::Banned, "tok-banned"), (Caller::Evicted, "tok-evicted")]
        {
            let join = json!({"ttl": 600, "token": token});
            one(&local, "spire.api.server.agent.v1.Agent/CreateJoinToken", join).await;
            let key = PrivateKey::generate(KeyType::EcP256).unwrap();
            let csr = BASE64.encode(&agent_csr(&key, None).unwrap());
            let params = json!({"params": {
                "data": {"type": "join_token", "payload": BASE64.encode(token.as_bytes())},
                "params": {"csr": csr},
            }});
            let answer = one(&anonymous, "spire.api.server.agent.v1.Agent/AttestAgent", params).await;
            let svid = svid(&answer["result"]["svid"], key);
            channels.insert(caller, remote(target, &trust, Some(svid)).await);
        }
        let entries: Vec<_> = [("admin", true, false), ("downstream", false, true)]
            .iter()
            .map(|(name, admin, downstream)| {
                json!({
                    "id": format!("e-{name}"),
                    "spiffe_id": {"trust_domain": "example.org", "path": format!("/{name}")},
                    "parent_id": {"trust_domain": "example.org", "path": "/holder"},
                    "selectors": [{"type": "unix", "value": format!("user:{name}")}],
                    "admin": admin, "downstream": downstream,
                })
            })
            .collect();
        let created =
            one(&local, "spire.api.server.entry.v1.Entry/BatchCreateEntry", json!({"entries": entries}))
                .await;
        assert_eq!(created["results"].as_array().map(Vec::len), Some(2), "{created}");
        for (caller, name) in
            [(Caller::Admin, "admin"), (Caller::Downstream, "downstream"), (Caller::Member, "member")]
        {
            let key = PrivateKey::generate(KeyType::EcP256).unwrap();
            let id = SpiffeId::from_parts(td.clone(), &format!("/{name}")).unwrap();
            let csr = BASE64.encode(&agent_csr(&key, Some(&id)).unwrap());
            let minted = one(&local, "spire.api.server.svid.v1.SVID/MintX509SVID", json!({"csr": csr})).await;
            let svid = svid(&minted["svid"], key);
            channels.insert(caller, remote(target, &trust, Some(svid)).await);
        }
        for (method, token) in [("BanAgent", "tok-banned"), ("DeleteAgent", "tok-evicted")] {
            let path = format!("/spire/agent/join_token/{token}");
            let id = json!({"id": {"trust_domain": "example.org", "path": path}});
            one(&local, &format!("spire.api.server.agent.v1.Agent/{method}"), id).await;
        }
        channels.insert(Caller::Local, local);
        channels.insert(Caller::Anonymous, anonymous);
        Self { channels }
    }

    /// Sends the messages, ends the request, and takes all answers.
    pub(super) async fn call(&self, caller: Caller, method: &str, messages: &[Value]) -> Value {
        match call(&self.channels[&caller], method, messages).await {
            Ok(responses) => json!({"code": "Ok", "responses": responses}),
            Err(status) => {
                let mut answer = Map::new();
                answer.insert("code".into(), json!(format!("{:?}", status.code())));
                answer.insert("message".into(), json!(status.message()));
                if let Some(reason) = denial_reason(&status) {
                    answer.insert("reason".into(), json!(format!("{reason:?}")));
                }
                Value::Object(answer)
            }
        }
    }
}

fn svid(wire: &Value, key: PrivateKey) -> Svid {
    let chain = wire["cert_chain"].as_array().unwrap();
    let chain = chain.iter().map(|der| BASE64.decode(der.as_str().unwrap().as_bytes()).unwrap()).collect();
    Svid::new(chain, Arc::new(key)).unwrap()
}

async fn local(target: &Target) -> Channel {
    let path = target.socket.clone();
    let dial = move |_: tonic::transport::Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    };
    Endpoint::from_static("http://localhost").connect_with_connector(tower::service_fn(dial)).await.unwrap()
}

/// A channel over TLS. It dials anew when the server ends the connection.
async fn remote(target: &Target, trust: &TrustStore, svid: Option<Svid>) -> Channel {
    let server = PeerCheck::ServerId(TrustDomain::parse("example.org").unwrap().server_id());
    let holder = svid.map(SvidHolder::new);
    let tls = client_config(holder, trust.clone(), server, Arc::new(crate::differential::now));
    let address = target.address.clone();
    let dial = move |_: tonic::transport::Uri| {
        let (tls, address) = (tls.clone(), address.clone());
        async move {
            let tcp = TcpStream::connect(address).await?;
            TlsConnector::from(tls).connect(server_name(), tcp).await.map(TokioIo::new)
        }
    };
    Endpoint::from_static("http://server").connect_with_connector_lazy(tower::service_fn(dial))
}

/// One message, one answer, which must be a good one.
async fn one(channel: &Channel, method: &str, message: Value) -> Value {
    let mut responses = call(channel, method, &[message]).await.unwrap_or_else(|s| panic!("{method}: {s}"));
    responses.pop().unwrap_or_default()
}

async fn call(channel: &Channel, method: &str, messages: &[Value]) -> Result<Vec<Value>, Status> {
    let (service, name) = method.split_once('/').unwrap();
    let descriptor = POOL
        .get_service_by_name(service)
        .and_then(|service| service.methods().find(|method| method.name() == name))
        .unwrap_or_else(|| panic!("no method {method}"));
    let messages: Vec<_> = messages
        .iter()
        .map(|message| {
            DynamicMessage::deserialize(descriptor.input(), message.clone())
                .unwrap_or_else(|error| panic!("{method}: {error}: {message}"))
        })
        .collect();
    let path = format!("/{method}").parse().unwrap();
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let codec = DynamicCodec { output: descriptor.output() };
    let mut request = Request::new(tokio_stream::iter(messages));
    request.set_timeout(PATIENCE);
    let take_all = async {
        let mut stream = client.streaming(request, path, codec).await?.into_inner();
        let mut responses = Vec::new();
        while let Some(message) = stream.message().await? {
            let options = SerializeOptions::new().use_proto_field_name(true);
            let value = message.serialize_with_options(serde_json::value::Serializer, &options);
            responses.push(value.map_err(|error| Status::internal(error.to_string()))?);
            if name == "Watch" {
                break; // Never ends by itself.
            }
        }
        Ok(responses)
    };
    match tokio::time::timeout(PATIENCE * 2, take_all).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}

struct DynamicCodec {
    output: MessageDescriptor,
}

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicEncoder;
    type Decoder = DynamicDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        DynamicEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        DynamicDecoder { output: self.output.clone() }
    }
}

struct DynamicEncoder;

impl Encoder for DynamicEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

struct DynamicDecoder {
    output: MessageDescriptor,
}

impl Decoder for DynamicDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let message = DynamicMessage::decode(self.output.clone(), buffer);
        message.map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}
