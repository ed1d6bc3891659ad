//! Which protocol features a device may acknowledge: the caller's choice, less what
//! the caller's functions cannot serve.

use super::DeviceOptions;
use super::plan::Wanted;
use crate::backend_client::BackendHandler;
use crate::error::{Error, Result};
use crate::message::{
    BackendRequest, PROTOCOL_FEATURE_NEEDS, ProtocolFeatures, bit_names, protocol_feature_name,
};

/// The protocol features that a device acknowledges by default.
///
/// A list of its own, and final: a later version of the library, which may know more
/// features, still acknowledges these by default and no others.
pub(super) const DEFAULT: u64 = ProtocolFeatures::MQ
    .union(ProtocolFeatures::LOG_SHMFD)
    .union(ProtocolFeatures::REPLY_ACK)
    .union(ProtocolFeatures::BACKEND_REQ)
    .union(ProtocolFeatures::CONFIG)
    .union(ProtocolFeatures::BACKEND_SEND_FD)
    .union(ProtocolFeatures::HOST_NOTIFIER)
    .union(ProtocolFeatures::INFLIGHT_SHMFD)
    .union(ProtocolFeatures::RESET_DEVICE)
    .union(ProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(ProtocolFeatures::STATUS)
    .union(ProtocolFeatures::SHARED_OBJECT)
    .union(ProtocolFeatures::DEVICE_STATE)
    .union(ProtocolFeatures::SHMEM)
    .union(ProtocolFeatures::GPA_ADDRESSES)
    .union(ProtocolFeatures::GET_VRING_BASE_INFLIGHT)
    .union(ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN)
    .bits();

/// Protocol features that the device makes use of: the default set, and what later versions
/// have added, which a program has to ask for.
pub(super) const SERVED: ProtocolFeatures = ProtocolFeatures::from_bits_truncate(DEFAULT)
    .union(ProtocolFeatures::RARP)
    .union(ProtocolFeatures::MTU)
    .union(ProtocolFeatures::CROSS_ENDIAN);

/// What is acknowledged of what is offered: never a bit without what it needs.
pub(super) fn of(offered: u64, wanted: &Wanted) -> ProtocolFeatures {
    let mut agreed = ProtocolFeatures::from_bits_truncate(offered & wanted.protocol) & SERVED;
    if !wanted.channel {
        agreed.remove(ProtocolFeatures::BACKEND_REQ);
    }
    if !agreed.contains(ProtocolFeatures::BACKEND_REQ) {
        agreed.remove(
            ProtocolFeatures::BACKEND_SEND_FD
                | ProtocolFeatures::HOST_NOTIFIER
                | ProtocolFeatures::SHARED_OBJECT
                | ProtocolFeatures::SHMEM,
        );
    }
    if wanted.config_size == 0 {
        agreed.remove(ProtocolFeatures::CONFIG);
    }
    // Without the request that skips the drain, this bit would let GET_VRING_BASE skip
    // it, and nothing would drain a ring.
    if !agreed.contains(ProtocolFeatures::GET_VRING_BASE_SKIP_DRAIN) {
        agreed.remove(ProtocolFeatures::GET_VRING_BASE_INFLIGHT);
    }
    // Twice, as one needs another that needs a third.
    for _ in 0..2 {
        for (feature, needs) in PROTOCOL_FEATURE_NEEDS {
            if !agreed.contains(needs) {
                agreed.remove(feature);
            }
        }
    }
    agreed
}

/// The features that need a caller-supplied function, and have none.
fn unserved(handler: Option<&dyn BackendHandler>) -> ProtocolFeatures {
    let served = |requests: &[BackendRequest]| {
        handler.is_some_and(|handler| requests.iter().any(|it| handler.handles(*it)))
    };
    let served = [
        (ProtocolFeatures::SHMEM, served(&[BackendRequest::ShmemMap])),
        (
            ProtocolFeatures::HOST_NOTIFIER,
            served(&[BackendRequest::HostNotifier]),
        ),
        (
            ProtocolFeatures::SHARED_OBJECT,
            served(&[
                BackendRequest::SharedObjectAdd,
                BackendRequest::SharedObjectRemove,
                BackendRequest::SharedObjectLookup,
            ]),
        ),
        // The `vhost` crate attaches a descriptor to SHARED_OBJECT_LOOKUP.
        (
            ProtocolFeatures::BACKEND_SEND_FD,
            served(&[
                BackendRequest::ShmemMap,
                BackendRequest::HostNotifier,
                BackendRequest::SharedObjectLookup,
            ]),
        ),
    ];
    let unserved = served.into_iter().filter(|(_, served)| !served);
    unserved.map(|(feature, _)| feature).collect()
}

impl DeviceOptions {
    /// The protocol features that may be acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.protocol_features & !unserved(self.handler.as_deref()).bits()
    }

    /// Refuses to require what can never be acknowledged.
    pub(super) fn check_required(&self) -> Result<()> {
        let unserved = unserved(self.handler.as_deref()).bits();
        match self.required_protocol_features & unserved {
            0 => Ok(()),
            bits => {
                let names = bit_names(bits, protocol_feature_name);
                Err(Error::invalid(format!(
                    "required_protocol_features has bits that need a function in \
                     backend_ops, and there is none: {names}"
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ProtocolFeatures as P;
    use std::sync::Arc;

    struct Serves(&'static [BackendRequest]);

    impl BackendHandler for Serves {
        fn handles(&self, request: BackendRequest) -> bool {
            self.0.contains(&request)
        }
    }

    fn options(requests: &'static [BackendRequest]) -> DeviceOptions {
        DeviceOptions {
            handler: Some(Arc::new(Serves(requests))),
            ..DeviceOptions::default()
        }
    }

    /// The number is in the documentation and in programs: it never changes.
    #[test]
    fn the_default_set_is_fixed() {
        assert_eq!(DEFAULT, 0x00fd_be2b);
        assert_eq!(DeviceOptions::default().protocol_features, DEFAULT);
    }

    #[test]
    fn features_without_a_function_are_not_acknowledged() {
        use BackendRequest as R;
        let channel = P::SHMEM | P::HOST_NOTIFIER | P::SHARED_OBJECT | P::BACKEND_SEND_FD;
        let none = DeviceOptions::default().acknowledged();
        assert_eq!(none, DEFAULT & !channel.bits());
        let cases: [(&'static [R], P); 7] = [
            (&[R::Iotlb, R::ConfigChange], P::empty()),
            (&[R::HostNotifier], P::HOST_NOTIFIER | P::BACKEND_SEND_FD),
            (&[R::ShmemMap, R::ShmemUnmap], P::SHMEM | P::BACKEND_SEND_FD),
            (&[R::SharedObjectAdd], P::SHARED_OBJECT),
            (&[R::SharedObjectRemove], P::SHARED_OBJECT),
            (
                &[R::SharedObjectLookup],
                P::SHARED_OBJECT | P::BACKEND_SEND_FD,
            ),
            (R::ALL, channel),
        ];
        for (requests, served) in cases {
            let acknowledged = options(requests).acknowledged();
            assert_eq!(acknowledged, none | served.bits(), "{requests:?}");
            // A set that the caller chose needs the functions, too.
            let all = DeviceOptions {
                protocol_features: u64::MAX,
                ..options(requests)
            };
            let acknowledged = P::from_bits_truncate(all.acknowledged());
            assert_eq!(acknowledged & channel, served, "{requests:?}");
        }
    }

    #[test]
    fn a_required_feature_needs_its_function() {
        let requires = |options: DeviceOptions| DeviceOptions {
            required_protocol_features: (P::SHMEM | P::MQ).bits(),
            ..options
        };
        let error = requires(DeviceOptions::default()).check().err();
        let text = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("SHMEM") && !text.contains("MQ"), "{text}");
        let served = requires(options(BackendRequest::ALL)).check();
        assert!(served.is_ok(), "{served:?}");
    }
}
