//! The home agent finds out who has the other end of a busy connection.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Mover, Side};
use crate::ids::{JobId, NodeId};
use crate::node;
use crate::node::holder::{self, Ends};
use crate::node::message::NodeMsg;
use crate::proxy::{addresses, Relays, StreamId};

/// A node that is asked for the other end of a connection answers within so long.
const ANSWER: Duration = Duration::from_millis(500);

impl Mover {
    /// Answers for connections that would go past their relays.
    pub(in crate::supervisor::moves) fn serve_wants(&mut self) {
        let wants = self.home.as_mut().map(Relays::take_wants).unwrap_or_default();
        if wants.is_empty() {
            return;
        }
        let found = self.look_for_peers(&wants);
        for stream in wants {
            self.relay(Side::Home, |relays, out| match found.get(&stream) {
                Some((node, job)) => relays.meet((stream, *node, *job), out),
                None => relays.invite(stream, out),
            });
        }
    }

    /// Other jobs that have the other ends, with the nodes that know of them.
    fn look_for_peers(&self, streams: &[StreamId]) -> BTreeMap<StreamId, (NodeId, JobId)> {
        let Some(home) = &self.home else { return BTreeMap::new() };
        let all = streams.iter().filter_map(|stream| {
            let real = home.real_socket(*stream)?.try_clone_to_owned().ok()?;
            // As the other end has them.
            addresses(&real).map(|(own, peer)| (*stream, (peer, own)))
        });
        let (streams, ends): (Vec<StreamId>, Vec<Ends>) = all.unzip();
        let here =
            if self.is_alone() { Ok(Vec::new()) } else { holder::of(&self.sup.state, &ends) };
        let here = here.unwrap_or_else(|e| {
            tracing::debug!("the other ends of connections: {e}");
            Vec::new()
        });
        let mut found = BTreeMap::new();
        for (n, (stream, ends)) in streams.into_iter().zip(ends).enumerate() {
            let here = here.get(n).copied().flatten().map(|job| (self.here, job));
            let job = here.or_else(|| self.ask_node(ends));
            found.extend(job.filter(|(_, job)| *job != self.sup.job.id).map(|job| (stream, job)));
        }
        found
    }

    /// Are there no other jobs on this node?
    fn is_alone(&self) -> bool {
        let jobs = self.sup.state.jobs();
        jobs.is_ok_and(|jobs| jobs.iter().all(|(job, _)| *job == self.sup.job.id))
    }

    /// Asks the node that has this address.
    fn ask_node(&self, (own, peer): Ends) -> Option<(NodeId, JobId)> {
        let tls = node::tls(&self.sup.state).ok()?;
        for member in node::peers::load(&self.sup.state).ok()? {
            let Ok(at) = member.addr.parse::<SocketAddr>() else { continue };
            let (at, asked) = (at.ip().to_canonical(), own.ip().to_canonical());
            if at != asked && !(at.is_loopback() && asked.is_loopback()) {
                continue;
            }
            let question = NodeMsg::Who { own, peer };
            match node::client::call(&member.addr, &tls, member.id, &question, ANSWER) {
                Ok(NodeMsg::Holder(Some(job))) => return Some((member.id, job)),
                Ok(_) => {}
                Err(e) => tracing::debug!("{}: {e}", member.name),
            }
        }
        None
    }
}
