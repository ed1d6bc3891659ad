//! vuf_client_submit(): lists of any requests, with fields that these have and some
//! that they do not.

use super::{About, Block, CLOSED, Calls, Place, last_error};
use vhost_user_frontend::ffi::list::*;
use vhost_user_frontend::ffi::requests::*;
use vhost_user_frontend::ffi::types::*;

/// Those that a list may have, and one that it may not.
const REQUESTS: [u32; 15] = [
    VUF_REQUEST_SET_VRING_NUM,
    VUF_REQUEST_SET_VRING_ADDR,
    VUF_REQUEST_SET_VRING_BASE,
    VUF_REQUEST_SET_VRING_KICK,
    VUF_REQUEST_SET_VRING_CALL,
    VUF_REQUEST_SET_VRING_ERR,
    VUF_REQUEST_SET_VRING_ENABLE,
    VUF_REQUEST_SET_VRING_ENDIAN,
    VUF_REQUEST_VRING_KICK,
    VUF_REQUEST_SET_INFLIGHT_FD,
    VUF_REQUEST_SET_LOG_FD,
    VUF_REQUEST_SET_STATUS,
    VUF_REQUEST_NET_SET_MTU,
    VUF_REQUEST_SEND_RARP,
    VUF_REQUEST_GET_FEATURES,
];

impl Calls<'_> {
    fn list_addr(&mut self) -> Block {
        let odd = self.input.byte();
        let addr = vuf_vring_addr {
            flags: u32::from(odd & 1),
            reserved: u32::from(odd == 0xff),
            descriptor: self.long() & !15,
            available: self.long() & !1,
            used: self.long() & !3,
            log: self.long(),
        };
        Block::of(&[addr], self.place())
    }

    fn list_inflight(&mut self) -> Block {
        let odd = self.input.byte();
        let inflight = vuf_inflight {
            mmap_size: 1 << (odd & 15),
            mmap_offset: 0,
            num_queues: 1,
            queue_size: 8,
            reserved: u32::from(odd == 0xff),
        };
        Block::of(&[inflight], self.place())
    }

    /// What it points to goes to `blocks`.
    fn op(&mut self, blocks: &mut Vec<Block>) -> vuf_op {
        let (which, odd) = (self.input.byte(), self.input.byte());
        let mut op = vuf_op {
            request: match REQUESTS.get(usize::from(which & 15)) {
                Some(request) => *request,
                None => self.number(),
            },
            index: 0,
            fd: 0,
            reserved0: 0,
            value: 0,
            addr: std::ptr::null(),
            inflight: std::ptr::null(),
            reserved: [0; 2],
        };
        match op.request {
            VUF_REQUEST_SET_LOG_FD => op.fd = self.fd(),
            VUF_REQUEST_SET_INFLIGHT_FD => {
                let inflight = self.list_inflight();
                op.fd = self.fd();
                op.inflight = inflight.at();
                blocks.push(inflight);
            }
            VUF_REQUEST_SET_STATUS | VUF_REQUEST_NET_SET_MTU | VUF_REQUEST_SEND_RARP => {
                op.value = self.long();
            }
            _ => {
                op.index = u32::from(which >> 4);
                match op.request {
                    VUF_REQUEST_SET_VRING_ADDR => {
                        let addr = self.list_addr();
                        op.addr = addr.at();
                        blocks.push(addr);
                    }
                    VUF_REQUEST_SET_VRING_KICK
                    | VUF_REQUEST_SET_VRING_CALL
                    | VUF_REQUEST_SET_VRING_ERR => op.fd = self.fd(),
                    VUF_REQUEST_SET_VRING_ENABLE => op.value = u64::from(odd & 1),
                    VUF_REQUEST_VRING_KICK => {}
                    _ => op.value = u64::from(self.number()),
                }
            }
        }
        match odd {
            240 => op.index = self.number(),
            241 => op.fd = CLOSED,
            242 => op.fd = -1,
            243 => op.fd = self.fd(),
            244 => op.reserved0 = self.number(),
            245 => op.value = self.long(),
            246 => {
                let addr = self.list_addr();
                op.addr = addr.at();
                blocks.push(addr);
            }
            247 => {
                let inflight = self.list_inflight();
                op.inflight = inflight.at();
                blocks.push(inflight);
            }
            248 => op.reserved[1] = self.long(),
            _ => {}
        }
        op
    }

    /// A few, or some of them again and again: more than are sent at once.
    fn list(&mut self, blocks: &mut Vec<Block>) -> Vec<vuf_op> {
        let n = self.input.byte();
        let few: Vec<_> = (0..n & 15).map(|_| self.op(blocks)).collect();
        let times = match n >> 4 {
            many @ 12.. => usize::from(many),
            _ => 1,
        };
        few.repeat(times)
    }

    pub(super) fn submit(&mut self) {
        let mut blocks = Vec::new();
        let mut ops = self.list(&mut blocks);
        let place = self.place();
        if place == Place::Null {
            ops.clear();
        }
        let n = match place {
            Place::Null => usize::try_from(self.long()).unwrap(),
            _ => ops.len(),
        };
        let list = Block::of(&ops, place);
        let flags = match self.input.byte() {
            0xff => self.number(),
            _ => 0,
        };
        let time = match self.time() {
            // A silent peer leaves it to the deadline.
            time if self.silent && self.short => time % 5,
            time => time,
        };
        let place = self.place();
        let size = self.struct_size(size_of::<vuf_submit_result>());
        let out = Block::new(size.max(size_of::<usize>()), place);
        let to: *mut usize = out.memory.wrapping_add(out.offset()).cast();
        // SAFETY: there is room for a size.
        unsafe { to.write_unaligned(size) };

        let about = About {
            any: true,
            ..About::default()
        };
        // SAFETY: pointers are null or to blocks of these sizes; so are those in them.
        let rc = self.call(about, |c| unsafe {
            vuf_client_submit(c, list.at(), n, flags, time, out.at())
        });

        assert_eq!(out.read::<usize>(), size, "the size was written");
        let rest = &out.bytes()[size_of::<usize>()..];
        if rest.iter().all(|byte| *byte == super::FILL) {
            assert!(rc != 0 || rest.is_empty() || out.place == Place::Null);
        } else {
            let surplus = rest
                .iter()
                .skip(size_of::<vuf_submit_result>() - size_of::<usize>());
            assert!(surplus.copied().all(|byte| byte == 0), "not zeroed");
            if size >= size_of::<vuf_submit_result>() {
                check_result(rc, &ops, &out.read());
            }
        }
    }
}

/// What is true of every result.
fn check_result(rc: i32, ops: &[vuf_op], result: &vuf_submit_result) {
    let count = |n: u32| usize::try_from(n).unwrap();
    let (sent, applied, refused) = (
        count(result.sent),
        count(result.applied),
        count(result.refused),
    );
    assert_eq!(result.code, rc);
    assert!(sent <= ops.len() && applied + refused <= sent, "{result:?}");
    assert!(result.reserved == 0 && result.has_value <= 1);
    if rc == 0 {
        assert!(applied == ops.len() && refused == 0, "{result:?}");
        assert!(result.failed == -1 && result.request == 0);
        return;
    }
    let said = last_error();
    assert_eq!(result.errno_value, said.errno_value);
    assert_eq!(result.error_class, said.error_class);
    assert_eq!(result.phase, said.phase);
    assert_eq!(result.request, said.request);
    assert_eq!(result.ring, said.ring);
    assert_eq!(result.has_value, said.has_value);
    assert_eq!(result.value, said.value);
    if let Ok(failed) = usize::try_from(result.failed) {
        let op = &ops[failed];
        assert!(
            result.request == 0 || result.request == op.request,
            "{result:?}"
        );
        assert!(
            result.ring == -1 || result.ring == i32::try_from(op.index).unwrap(),
            "{result:?}"
        );
    }
}
