//! Options change speed and shape, never what is read: one history under random options.

use proptest::prelude::*;

use super::model::{Rig, step};
use super::{effort, tiny};
use crate::engine::Options;
use crate::engine::options::{Compression, SyncMode};

fn options() -> impl Strategy<Value = Options> {
    let sync = prop_oneof![Just(SyncMode::Always), Just(SyncMode::Interval), Just(SyncMode::Os)];
    let sizes = (1..64usize, 1..5usize, 0..3usize, 64..2048usize);
    let tree = (1..16u64, 1..6usize, 2..8u64, 0..3u32, any::<bool>(), any::<bool>());
    (sync, sizes, tree).prop_map(|(sync_mode, sizes, tree)| {
        let (memtable, sealed, cache, block) = sizes;
        let (table, trigger, ratio, bits, upper, lower) = tree;
        let compression = |on| if on { Compression::Lz4 } else { Compression::None };
        Options {
            sync_mode,
            memtable_bytes: memtable << 10,
            sealed_memtables_max: sealed,
            row_cache_bytes: [0, 4 << 10, 1 << 20][cache],
            block_bytes: block,
            table_bytes: table << 10,
            level0_tables_trigger: trigger,
            level0_tables_stop: trigger + 3,
            level_ratio: ratio,
            filter_bits_per_key: [0, 4, 12][bits as usize],
            compression_upper: compression(upper),
            compression_lower: compression(lower),
            verify_every_read: upper,
            ..tiny()
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(effort(150)))]

    #[test]
    fn reads_do_not_depend_on_options(
        options in options(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut rig = Rig::new(options);
        for step in &steps {
            rig.run(step);
        }
        rig.check_all();
    }
}
