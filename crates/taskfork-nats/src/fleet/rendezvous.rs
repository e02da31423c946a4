//! Which node a key belongs to. No I/O.
//!
//! Each pair of key and node has a weight, and the node with the largest one has the key. When a node comes or
//! goes, only the keys that it gets or had move. All clients must compute the same weights, also in other
//! languages and later versions: FNV-1a with 64 bits over the key, a zero byte and the node's name,
//! mixed by the end of MurmurHash3.

/// The nodes in the order in which a key prefers them.
pub(super) fn order<N: AsRef<str>>(key: &str, mut nodes: Vec<N>) -> Vec<N> {
    nodes.sort_by_cached_key(|node| {
        (std::cmp::Reverse(weight(key, node.as_ref())), node.as_ref().to_owned())
    });
    nodes
}

fn weight(key: &str, node: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for byte in key.bytes().chain([0]).chain(node.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("node-{n}")).collect()
    }

    #[test]
    fn keys_are_spread_evenly() {
        let mut counts = [0; 10];
        for key in 0..10_000 {
            let first = order(&format!("tenant-{key}"), nodes(10)).remove(0);
            counts[first["node-".len()..].parse::<usize>().unwrap()] += 1;
        }

        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_node_that_goes_moves_its_own_keys_only() {
        for key in 0..1000 {
            let key = format!("tenant-{key}");
            let all = order(&key, nodes(10));
            let mut fewer = nodes(10);
            fewer.retain(|node| node != "node-3");

            let left: Vec<String> = all.into_iter().filter(|node| node != "node-3").collect();
            assert_eq!(left, order(&key, fewer));
        }
    }

    #[test]
    fn weights_stay_as_they_are() {
        assert_eq!(order("tenant-7", nodes(4)), ORDER);
    }

    /// As computed by a program of its own from the description above.
    const ORDER: [&str; 4] = ["node-0", "node-1", "node-3", "node-2"];
}
