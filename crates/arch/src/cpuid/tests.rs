use super::*;

fn host(vendor: &[u8; 12]) -> HostCpu {
    HostCpu {
        vendor: *vendor,
        signature: 0x00b4_0f40,
        features: Features {
            l1_ecx: !0,
            l1_edx: !0,
            l7_ebx: !0,
            l7_ecx: !0,
            l7_edx: !0,
            x1_ecx: !0,
            x1_edx: !0,
            xsave: !0,
        },
        ..HostCpu::default()
    }
}

#[test]
fn names_parse_and_print() {
    for m in [CpuModel::Host, CpuModel::V2, CpuModel::V3] {
        assert_eq!(m.to_string().parse(), Ok(m));
    }
    assert!(
        "v4".parse::<CpuModel>()
            .unwrap_err()
            .to_string()
            .contains("v4")
    );
}

#[test]
fn never_shows_what_is_not_implemented() {
    for vendor in [b"AuthenticAMD", b"GenuineIntel"] {
        for model in [CpuModel::Host, CpuModel::V2, CpuModel::V3] {
            let t = CpuidTable::new(model, &host(vendor), 4, 1_000_000).unwrap();
            let d = Dynamic {
                osxsave: true,
                xcr0: 7,
            };
            let l7 = t.lookup(7, 0, 0, &d);
            // RTM, MPX, AVX-512 (F, DQ, IFMA, CD, BW, VL), PKU, CET, LA57, AMX.
            assert_eq!(l7[1] & (1 << 11 | 1 << 14 | 0xdc23_0000), 0);
            assert_eq!(l7[2] & (1 << 3 | 1 << 7 | 1 << 16), 0);
            assert_eq!(l7[3] & (7 << 22 | 1 << 20 | 1 << 24), 0);
            // VMX, MONITOR, PCID; XSAVES.
            let l1 = t.lookup(1, 0, 0, &d);
            assert_eq!(l1[2] & (1 << 5 | 1 << 3 | 1 << 17), 0);
            assert_eq!(t.lookup(0xd, 1, 0, &d)[0] & !3, 0);
        }
    }
}

#[test]
fn v2_has_no_avx_and_v3_needs_it() {
    let h = host(b"AuthenticAMD");
    let t = CpuidTable::new(CpuModel::V2, &h, 1, 1).unwrap();
    assert_eq!(t.xcr0_mask(), 3);
    assert_eq!(t.features().l1_ecx & bit::l1c::AVX, 0);
    assert_eq!(t.lookup(0xd, 0, 0, &Dynamic::default())[2], 576);
    let mut poor = h.clone();
    poor.features.l7_ebx &= !bit::l7b::AVX2;
    let e = CpuidTable::new(CpuModel::V3, &poor, 1, 1).unwrap_err();
    assert!(e.to_string().contains("AVX2"), "{e}");
    let t = CpuidTable::new(CpuModel::Host, &h, 1, 1).unwrap();
    assert_eq!(
        t.lookup(
            0xd,
            0,
            0,
            &Dynamic {
                osxsave: true,
                xcr0: 7
            }
        )[1],
        832
    );
}

#[test]
fn topology_gives_each_vcpu_its_core() {
    let t = CpuidTable::new(CpuModel::Host, &host(b"GenuineIntel"), 6, 1).unwrap();
    let d = Dynamic::default();
    for i in 0..6 {
        assert_eq!(t.lookup(1, 0, i, &d)[1] >> 24, i);
        let core = t.lookup(0xb, 1, i, &d);
        assert_eq!((core[0], core[1], core[3]), (3, 6, i));
        assert_eq!(t.lookup(0xb, 0, i, &d)[1], 1);
    }
    assert_eq!(t.lookup(4, 3, 0, &d)[0] >> 14 & 0xfff, 7);
}

#[test]
fn hypervisor_signature_and_dynamic_bits() {
    let t = CpuidTable::new(CpuModel::Host, &host(b"AuthenticAMD"), 2, 3_000_000).unwrap();
    let d = Dynamic::default();
    let [max, b, c, e] = t.lookup(0x4000_0000, 0, 0, &d);
    assert_eq!(max, 0x4000_0010);
    let text: Vec<u8> = [b, c, e].iter().flat_map(|w| w.to_le_bytes()).collect();
    assert_eq!(&text, b"KVMKVMKVM\0\0\0");
    assert_eq!(t.lookup(0x4000_0010, 0, 0, &d)[0], 3_000_000);
    assert_eq!(t.lookup(1, 0, 0, &d)[2] & bit::l1c::OSXSAVE, 0);
    let on = Dynamic {
        osxsave: true,
        xcr0: 7,
    };
    assert_ne!(t.lookup(1, 0, 0, &on)[2] & bit::l1c::OSXSAVE, 0);
}

#[test]
fn amd_shows_no_need_for_mitigations() {
    let t = CpuidTable::new(CpuModel::Host, &host(b"AuthenticAMD"), 2, 1).unwrap();
    let d = Dynamic::default();
    assert_ne!(t.lookup(0x8000_0021, 0, 0, &d)[0] & (1 << 8), 0);
    assert_ne!(t.lookup(7, 0, 0, &d)[3] & bit::L7D_ARCH_CAP, 0);
    assert_eq!(t.lookup(0x8000_0008, 0, 0, &d)[0], 46 | 48 << 8);
}
