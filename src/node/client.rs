//! Blocking questions to other nodes, for commands and for joining.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::message::NodeMsg;
use super::peers::{self, Own, Peer};
use super::store::StoreError;
use super::token::Token;
use crate::ids::NodeId;
use crate::migrate::transport::{CodecError, Link, LinkError, Service, TlsConfig};
use crate::state::StateDir;

/// How long a joining node waits for the other one.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a question got no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("{addr} did not answer within {timeout:?}")]
    Timeout { addr: String, timeout: Duration },
    #[error("{addr} closed the connection without an answer")]
    Closed { addr: String },
    #[error("{addr} gave an answer that is not understood: {source}")]
    Answer { addr: String, source: CodecError },
}

/// Asks the node `peer` at `addr` one question.
///
/// # Errors
/// When there is no answer, or the one who answers is not `peer`.
pub fn call(
    addr: &str,
    tls: &TlsConfig,
    peer: NodeId,
    question: &NodeMsg,
    timeout: Duration,
) -> Result<NodeMsg, CallError> {
    let mut link = Link::connect(addr, tls, peer, Service::Node)?;
    ask(&mut link, question, timeout)
}

fn ask(link: &mut Link, question: &NodeMsg, timeout: Duration) -> Result<NodeMsg, CallError> {
    let deadline = Instant::now() + timeout;
    link.send(question, &[])?;
    loop {
        if let Some(frame) = link.next_frame() {
            let addr = link.remote().to_owned();
            link.close()?;
            return frame.decode().map_err(|source| CallError::Answer { addr, source });
        }
        if link.closed() {
            return Err(CallError::Closed { addr: link.remote().to_owned() });
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CallError::Timeout { addr: link.remote().to_owned(), timeout });
        }
        link.wait(left)?;
    }
}

/// The time that a node takes to answer, handshake not counted.
///
/// # Errors
/// As [`call`].
pub fn ping(
    addr: &str,
    tls: &TlsConfig,
    peer: NodeId,
    timeout: Duration,
) -> Result<Duration, CallError> {
    let mut link = Link::connect(addr, tls, peer, Service::Node)?;
    let deadline = Instant::now() + timeout;
    while !link.established() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(CallError::Timeout { addr: addr.to_owned(), timeout });
        }
        link.wait(left)?;
    }
    let start = Instant::now();
    match ask(&mut link, &NodeMsg::Ping, deadline.saturating_duration_since(start))? {
        NodeMsg::Pong => Ok(start.elapsed()),
        _ => Err(CallError::Closed { addr: addr.to_owned() }),
    }
}

/// The address at which this node's own daemon can be asked from this host.
#[must_use]
pub fn local_address(own: &Own) -> String {
    let ip = match own.listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, own.listen.port()).to_string()
}

/// Why a node did not get in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("cannot join: the token is one of this node itself")]
    Own,
    #[error("cannot join: {0}; is `vosrun node` running there?")]
    Unreachable(CallError),
    #[error("cannot join: {addr} closed the connection, so the token has been used, has expired (1 h) or is not from there; `vosrun token` there makes a new one")]
    BadToken { addr: String },
    #[error("cannot join: {0}")]
    Refused(String),
    #[error("cannot join: {0}")]
    WrongNode(LinkError),
    #[error("joined, but the members were not noted: {0}")]
    Store(#[from] StoreError),
}

impl JoinError {
    /// The exit code: 75 (try again later) or 77 (not allowed).
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable(_) | Self::Store(_) => 75,
            _ => 77,
        }
    }
}

/// Joins the community of the token's node and takes over its list of members.
///
/// # Errors
/// When that node is not reached, is another one than the token says, or refuses.
pub fn join(state: &StateDir, tls: &TlsConfig, token: &Token, own: &Own) -> Result<(), JoinError> {
    if token.id == tls.id() {
        return Err(JoinError::Own);
    }
    let members = ask_to_join(tls, token, own)?;
    peers::merge(state, tls.id(), members)?;
    Ok(())
}

fn ask_to_join(tls: &TlsConfig, token: &Token, own: &Own) -> Result<Vec<Peer>, JoinError> {
    let addr = token.addr.to_string();
    let unreachable = |e: LinkError| JoinError::Unreachable(e.into());
    let mut link = Link::connect(&addr, tls, token.id, Service::Node).map_err(unreachable)?;
    let local = link.local_addr().map_err(unreachable)?;
    let question = NodeMsg::Join { secret: token.secret, entry: own.peer(tls.id(), local) };
    match ask(&mut link, &question, JOIN_TIMEOUT) {
        Ok(NodeMsg::Members(members)) => Ok(members),
        Ok(NodeMsg::Refused(why)) => Err(JoinError::Refused(why)),
        Ok(_) => Err(JoinError::Refused(format!("{addr} gave an unexpected answer"))),
        Err(e) => Err(join_error(e, link.established(), addr)),
    }
}

/// A node that was reached, proved its key and then hung up did not like the token.
fn join_error(error: CallError, established: bool, addr: String) -> JoinError {
    use crate::migrate::transport::LinkErrorKind::WrongPeer;
    match error {
        CallError::Link(e) if matches!(e.kind, WrongPeer { .. }) => JoinError::WrongNode(e),
        CallError::Link(_) | CallError::Closed { .. } if established => {
            JoinError::BadToken { addr }
        }
        e => JoinError::Unreachable(e),
    }
}
