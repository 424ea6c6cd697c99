//! What this node knows and says, without its event loop.

use std::net::SocketAddr;

use super::holder;
use super::message::NodeMsg;
use super::peers::{self, Own, Peer};
use super::store::StoreError;
use super::token::{redeem, RedeemError};
use crate::ids::NodeId;
use crate::migrate::transport::{Link, LinkError, Service, TlsConfig};
use crate::state::StateDir;

/// This node.
#[derive(Debug)]
pub struct Host {
    pub state: StateDir,
    pub tls: TlsConfig,
    pub own: Own,
}

/// An answer, and whether this node has learnt something that the others should know.
#[derive(Debug)]
pub struct Reply {
    pub answer: NodeMsg,
    pub news: bool,
}

impl From<NodeMsg> for Reply {
    fn from(answer: NodeMsg) -> Self {
        Self { answer, news: false }
    }
}

/// Why another member could not be called.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl Host {
    /// Answers `peer`, who has proven its key and sees this host as `local`.
    ///
    /// # Errors
    /// The reason, for the log, why it gets no answer.
    pub fn answer(
        &self,
        peer: NodeId,
        local: SocketAddr,
        question: NodeMsg,
    ) -> Result<Reply, String> {
        let trusted = self.tls.trusts(peer);
        match question {
            NodeMsg::Join { secret, entry } => self.admit(peer, local, &secret, entry, trusted),
            _ if !trusted => Err("its key is not the one of a trusted node".to_owned()),
            NodeMsg::Ping => Ok(NodeMsg::Pong.into()),
            NodeMsg::Who { own, peer } => {
                let found = holder::of(&self.state, &[(own, peer)]).map_err(|e| e.to_string())?;
                Ok(NodeMsg::Holder(found.into_iter().flatten().next()).into())
            }
            NodeMsg::Sync(theirs) => {
                let news = self.merge(peer, theirs)?;
                Ok(Reply { answer: self.members(local)?, news })
            }
            NodeMsg::Members(_) | NodeMsg::Refused(_) | NodeMsg::Pong | NodeMsg::Holder(_) => {
                Err("it sent an answer where a question belongs".to_owned())
            }
        }
    }

    /// Lets a stranger with a valid secret in. A member that asks again is only told the list.
    fn admit(
        &self,
        peer: NodeId,
        local: SocketAddr,
        secret: &[u8; 16],
        entry: Peer,
        trusted: bool,
    ) -> Result<Reply, String> {
        if entry.id != peer {
            return Err(format!("it wants to join as {}", entry.id));
        }
        if trusted {
            let news = self.merge(peer, vec![entry])?;
            return Ok(Reply { answer: self.members(local)?, news });
        }
        let name = entry.name.clone();
        match redeem(&self.state, self.tls.id(), secret, entry) {
            Ok(()) => {
                tracing::info!("{name} ({peer}) has joined");
                self.heard_of(peer);
                Ok(Reply { answer: self.members(local)?, news: true })
            }
            Err(RedeemError::Peer(why)) => Ok(NodeMsg::Refused(why.to_string()).into()),
            Err(why) => Err(format!("it may not join: {why}")),
        }
    }

    /// Calls another member to exchange lists with it; None when it is no member.
    ///
    /// # Errors
    /// When the list cannot be read or the call cannot start.
    pub fn call(&self, peer: NodeId) -> Result<Option<Link>, HostError> {
        let Some(entry) = peers::by_id(&self.state, peer)? else { return Ok(None) };
        let mut link = Link::connect(&entry.addr, &self.tls, peer, Service::Node)?;
        let members = self.list(link.local_addr()?)?;
        link.send(&NodeMsg::Sync(members), &[])?;
        Ok(Some(link))
    }

    /// Takes the answer to [`Self::call`]; true when there was news in it.
    ///
    /// # Errors
    /// When it is not the answer, or the list cannot be changed.
    pub fn learn(&self, peer: NodeId, answer: NodeMsg) -> Result<bool, String> {
        match answer {
            NodeMsg::Members(theirs) => self.merge(peer, theirs),
            _ => Err("its answer does not fit the question".to_owned()),
        }
    }

    fn merge(&self, peer: NodeId, theirs: Vec<Peer>) -> Result<bool, String> {
        self.heard_of(peer);
        peers::merge(&self.state, self.tls.id(), theirs).map_err(|e| e.to_string())
    }

    fn members(&self, local: SocketAddr) -> Result<NodeMsg, String> {
        Ok(NodeMsg::Members(self.list(local).map_err(|e| e.to_string())?))
    }

    fn list(&self, local: SocketAddr) -> Result<Vec<Peer>, StoreError> {
        let mut members = peers::load(&self.state)?;
        members.push(self.own.peer(self.tls.id(), local));
        Ok(members)
    }

    /// Only for display, so a failure is no more than logged.
    fn heard_of(&self, peer: NodeId) {
        if let Err(e) = peers::mark_seen(&self.state, &[peer]) {
            tracing::warn!("{e}");
        }
    }
}
