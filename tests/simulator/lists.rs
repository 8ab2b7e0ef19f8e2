//! Reading: every store as of one revision, once it has closed it.

use pleach::model::Revision;

use crate::{
    CHILD, KEYS, Mask, ROOT, Rpc, STORES, Snapshot,
    fault::Fault,
    history::{Listed, Stage},
    node::{CHILD_SOURCE, List, Reader},
    world::{Call, Message, World},
};

// === impl World ===

impl World {
    /// A client asks its node for a range.
    pub(crate) fn list(&mut self, client: usize) -> Result<(), String> {
        let (node, mask) = (self.clients[client].node, self.clients[client].mask);
        if !self.nodes[node].up || !self.can_list(node, mask) {
            return Ok(());
        }
        let (id, at) = (self.new_id(), self.nodes[node].clock.shown());
        self.note(|| format!("client {client} lists {mask:04b} by node {node} as {id}, at {at}"));
        self.clients[client].stage = Stage::Listing;
        let childs = Self::part(node, CHILD_SOURCE, mask);
        if childs != 0 {
            let alone = childs == mask || self.has(Fault::ListingEachLogAtItsOwnRevision);
            self.call(id, Call::List { mask: childs, at: (!alone).then_some(at) });
        }
        self.begin_list(node, id, Reader::Client(client), mask, at)
    }

    fn can_list(&self, node: usize, mask: Mask) -> bool {
        let attached = |source: &usize| self.nodes[node].complete[*source].is_none();
        Self::sources(node, mask).all(|source| self.reachable(node, source) && attached(&source))
    }

    /// The child is asked by its parent.
    pub(crate) fn take_list(
        &mut self,
        rpc: Rpc,
        mask: Mask,
        at: Option<Revision>,
    ) -> Result<(), String> {
        if !self.can_list(CHILD, mask) {
            self.network.push(Message::Refused { rpc });
            return Ok(());
        }
        let at = at.unwrap_or(self.nodes[CHILD].clock.shown());
        self.begin_list(CHILD, rpc, Reader::Parent(rpc), mask, at)
    }

    fn begin_list(
        &mut self,
        node: usize,
        id: Rpc,
        reader: Reader,
        mask: Mask,
        at: Revision,
    ) -> Result<(), String> {
        let (told_before, state) = (self.nodes[node].told, [[0; KEYS]; STORES]);
        let list = List { id, reader, mask, at, told_before, missing: mask, state };
        self.nodes[node].lists.push(list);
        self.advance_list(node, self.nodes[node].lists.len() - 1)
    }

    /// Reads what can be read by now, and answers when that is all.
    pub(crate) fn advance_list(&mut self, node: usize, index: usize) -> Result<(), String> {
        let mut list = self.nodes[node].lists.swap_remove(index);
        for store in [2 * node, 2 * node + 1] {
            let at_once = self.has(Fault::ListingEachLogAtItsOwnRevision);
            let can_read = at_once || self.closed(node, store) >= list.at;
            if list.missing & (1 << store) != 0 && self.stores[store].reachable && can_read {
                let at = if at_once { Revision::MAX } else { list.at };
                list.state[store] = self.stores[store].state(at);
                list.missing &= !(1 << store);
            }
        }
        if list.missing == 0 {
            return self.answer_list(node, list);
        }
        self.nodes[node].lists.push(list);
        Ok(())
    }

    /// The child's part has arrived.
    pub(crate) fn take_listed(
        &mut self,
        rpc: Rpc,
        at: Revision,
        state: Snapshot,
    ) -> Result<(), String> {
        let Some(index) = self.nodes[ROOT].lists.iter().position(|list| list.id == rpc) else {
            return Ok(());
        };
        self.observe(ROOT, at);
        let list = &mut self.nodes[ROOT].lists[index];
        let childs = Self::part(ROOT, CHILD_SOURCE, list.mask);
        if list.mask == childs {
            list.at = at;
        }
        list.missing &= !childs;
        list.state[2..].copy_from_slice(&state[2..]);
        self.advance_list(ROOT, index)
    }

    fn answer_list(&mut self, node: usize, list: List) -> Result<(), String> {
        let List { id, reader, mask, at, told_before, state, .. } = list;
        let client = match reader {
            Reader::Parent(rpc) => {
                self.network.push(Message::Listed { rpc, at, state });
                return Ok(());
            }
            Reader::Client(client) => client,
        };
        self.note(|| format!("list {id} of client {client} is answered at {at}: {state:?}"));
        if at < told_before {
            return Err(format!(
                "list {id} by node {node} is answered at {at}, but {told_before} was told before"
            ));
        }
        self.tell(node, at);
        self.history.seen.lists += 1;
        self.history.seen.spanning_lists += u64::from(Self::sources(node, mask).count() > 1);
        self.history.lists.push(Listed { node, mask, at, state });
        let client = &mut self.clients[client];
        (client.stage, client.base, client.told) = (Stage::Cut, at, at);
        client.events.clear();
        Ok(())
    }

    /// Lists that need what is gone fail at once: a partial list must never look like a whole one.
    pub(crate) fn fail_lists(&mut self, node: usize, is_lost: impl Fn(&List) -> bool) {
        let mut lists = std::mem::take(&mut self.nodes[node].lists);
        lists.retain(|list| {
            if is_lost(list) {
                match list.reader {
                    Reader::Client(client) => self.clients[client].stage = Stage::Fresh,
                    Reader::Parent(rpc) => self.network.push(Message::Refused { rpc }),
                }
            }
            !is_lost(list)
        });
        self.nodes[node].lists = lists;
    }
}
