//! Rotation keeps its invariants whatever is asked of it, and lifetimes stay within their bounds.

use bonafide_identity::{
    AuthorityKind, AuthoritySlots, BACKDATE, RotationStep, SlotStatus, Timestamp, activate_at, capped,
    lifetime::capped_token, prepare_at, renewal_instant, rotation::renewal_after_issue,
};
use proptest::prelude::*;
use std::time::Duration;

/// A caller's request; the numbers pick names, so that right and wrong ones both occur.
#[derive(Clone, Debug)]
enum Request {
    Prepare { name: u8, life: u64 },
    Activate(u8),
    ActivatePrepared,
    Taint(u8),
    Revoke(u8),
    ForgetOld(u8),
    Wait(u64),
    FollowDue { life: u64 },
}

fn request() -> impl Strategy<Value = Request> {
    let name = 0..4u8;
    prop_oneof![
        (name.clone(), 0..20_000u64).prop_map(|(name, life)| Request::Prepare { name, life }),
        name.clone().prop_map(Request::Activate),
        Just(Request::ActivatePrepared),
        name.clone().prop_map(Request::Taint),
        name.clone().prop_map(Request::Revoke),
        name.prop_map(Request::ForgetOld),
        (0..15_000u64).prop_map(Request::Wait),
        (1..20_000u64).prop_map(|life| Request::FollowDue { life }),
    ]
}

proptest! {
    #[test]
    fn slots_keep_their_invariants(requests in prop::collection::vec(request(), 0..60)) {
        let mut slots = AuthoritySlots::new();
        let mut now = Timestamp::from_unix_seconds(1_000);
        let mut made = 0;
        for request in requests {
            let before = slots.clone();
            let ok = match &request {
                Request::Prepare { name, life } => {
                    let end = now.saturating_add(Duration::from_millis(*life));
                    slots.prepare(name.to_string(), now, end, None).is_ok()
                }
                Request::Activate(name) => slots.activate(&name.to_string()).is_ok(),
                Request::ActivatePrepared => slots.activate_prepared().is_ok(),
                Request::Taint(name) => slots.taint(&name.to_string()).is_ok(),
                Request::Revoke(name) => slots.revoke(&name.to_string()).is_ok(),
                Request::ForgetOld(name) => slots.forget_old(&name.to_string()).is_some(),
                Request::Wait(millis) => {
                    now = now.saturating_add(Duration::from_millis(*millis));
                    true
                }
                Request::FollowDue { life } => match slots.due(now) {
                    Some(RotationStep::Prepare(slot)) => {
                        made += 1;
                        let end = now.saturating_add(Duration::from_millis(*life));
                        let new = slots.prepare(format!("due{made}"), now, end, None).unwrap();
                        prop_assert_eq!(new.slot, slot);
                        true
                    }
                    Some(RotationStep::Activate) => slots.activate_prepared().unwrap().not_after > now,
                    None => true,
                },
            };
            if !ok {
                prop_assert_eq!(&slots, &before, "a refused {:?} must change nothing", request);
            }
            // The active authority changes only from prepared, to the very authority that was prepared.
            if slots.active().map(|s| &s.authority_id) != before.active().map(|s| &s.authority_id) {
                prop_assert_eq!(before.prepared().map(|s| &s.authority_id), slots.active().map(|s| &s.authority_id));
                prop_assert_eq!(
                    slots.old().map(|s| (s.slot, &s.authority_id)),
                    before.active().map(|s| (s.slot, &s.authority_id))
                );
            }
            prop_assert!(slots.active().is_none_or(|s| s.status == SlotStatus::Active));
            prop_assert!(slots.active().is_some() || before.active().is_none(), "signing never stops");
            prop_assert!(slots.other().is_none_or(|s| s.status != SlotStatus::Active));
            prop_assert!(slots.iter().all(|s| s.status == SlotStatus::Old || !s.tainted));
            if let (Some(active), Some(other)) = (slots.active(), slots.other()) {
                prop_assert_ne!(active.slot, other.slot);
                prop_assert_ne!(&active.authority_id, &other.authority_id);
            }
            for slot in slots.iter() {
                let free = slot.status != SlotStatus::Active;
                prop_assert_eq!(slots.free_slot() == slot.slot, free);
                let revocable = slots.check_revocable(AuthorityKind::X509, &slot.authority_id).is_ok();
                prop_assert_eq!(revocable, slot.status == SlotStatus::Old);
            }
            prop_assert_eq!(AuthoritySlots::restore(slots.iter().cloned()), Ok(slots.clone()));

            let next = slots.next_due(now);
            prop_assert!(next >= now);
            prop_assert!(slots.due(next).is_some(), "something falls due in the end");
            if next > now {
                prop_assert_eq!(slots.due(now), None);
                prop_assert_eq!(slots.due(Timestamp::from_unix_millis(next.unix_millis() - 1)), None);
            }
        }
    }

    /// Woken whenever something is due, rotation always has an authority that lives.
    #[test]
    fn following_what_is_due_never_leaves_a_gap(life in 600..100_000u64, late in 0..50u64) {
        let life = Duration::from_millis(life);
        let mut slots = AuthoritySlots::new();
        let mut now = Timestamp::from_unix_seconds(1_000);
        for step in 0..40 {
            now = slots.next_due(now).saturating_add(Duration::from_millis(late));
            match slots.due(now) {
                Some(RotationStep::Prepare(_)) => {
                    slots.prepare(format!("{step}"), now, now.saturating_add(life), None).unwrap();
                }
                Some(RotationStep::Activate) => {
                    prop_assert!(slots.active().is_none_or(|active| active.not_after > now), "no gap");
                    slots.activate_prepared().unwrap();
                }
                None => prop_assert!(false, "next_due must be due"),
            }
        }
        prop_assert!(slots.active().is_some_and(|active| active.not_after > now));
    }

    #[test]
    fn thresholds_lie_in_order(start in any::<i64>(), end in any::<i64>()) {
        let (start, end) = (Timestamp::from_unix_millis(start), Timestamp::from_unix_millis(end));
        let (prepare, activate) = (prepare_at(start, end), activate_at(start, end));
        prop_assert!(prepare <= activate && activate <= end);
        prop_assert!(start > end || start <= prepare);
    }

    #[test]
    fn renewal_lies_around_half_life(
        start in 0..4_000_000_000_000i64,
        life in 0..(400 * 86_400_000i64),
        draw in any::<u64>(),
    ) {
        let (issued, end) = (Timestamp::from_unix_millis(start), Timestamp::from_unix_millis(start + life));
        let renewal = renewal_after_issue(issued, end, draw, None).unix_millis();
        let (middle, tenth) = (start + life / 2, life / 20);
        prop_assert!((renewal - middle).abs() <= tenth + 2, "{} of {life}", renewal - start);
        let certificate = renewal_instant(issued.saturating_sub(BACKDATE), end, draw, None).unix_millis();
        prop_assert!(life == 0 || certificate == renewal, "backdating does not count");
    }

    #[test]
    fn renewal_with_a_target_keeps_the_target(
        life in 0..(400 * 86_400u64),
        target in 0..(400 * 86_400u64),
        draw in any::<u64>(),
    ) {
        let issued = Timestamp::from_unix_seconds(0);
        let end = issued.saturating_add(Duration::from_secs(life));
        let renewal = renewal_after_issue(issued, end, draw, Some(Duration::from_secs(target)));
        let remaining = end.saturating_since(renewal).as_secs_f64();
        prop_assert!(issued <= renewal && renewal <= end);
        if target >= 86_400 && life > target + 43_200 {
            let target = target as f64;
            prop_assert!((target..=target + 600.0).contains(&remaining), "{remaining}");
        } else {
            prop_assert_eq!(renewal, renewal_after_issue(issued, end, draw, None));
        }
    }

    #[test]
    fn nothing_outlives_its_issuer(now in any::<i64>(), ttl in any::<u64>(), issuer in any::<i64>()) {
        let (now, issuer) = (Timestamp::from_unix_millis(now), Timestamp::from_unix_millis(issuer));
        let ttl = Duration::from_millis(ttl);
        for life in [capped(ttl, now, issuer), capped_token(ttl, now, issuer)] {
            prop_assert!(life.not_after <= issuer || issuer < Timestamp::from_unix_millis(i64::MIN + 1000));
            prop_assert!(life.not_after <= now.saturating_add(ttl) || now.unix_millis() < i64::MIN + 1000);
            prop_assert_eq!(life.limited_by_issuer, now.saturating_add(ttl) > issuer);
            prop_assert!(life.not_before <= now || now.unix_millis() < i64::MIN + 1000);
        }
    }

    #[test]
    fn a_life_is_what_was_promised_to_the_second(now in 0..4_000_000_000_000i64, ttl in 1..100_000_000u64) {
        let now = Timestamp::from_unix_millis(now);
        let ttl = Duration::from_millis(ttl);
        let life = capped(ttl, now, Timestamp::from_unix_millis(i64::MAX));
        prop_assert!(now.saturating_add(ttl).saturating_since(life.not_after) < Duration::from_secs(1));
        let early = now.saturating_since(life.not_before);
        prop_assert!(BACKDATE <= early && early < BACKDATE + Duration::from_secs(1));
        prop_assert_eq!(life.not_after.unix_millis() % 1000, 0);
        prop_assert_eq!(life.not_before.unix_millis() % 1000, 0);
    }
}
