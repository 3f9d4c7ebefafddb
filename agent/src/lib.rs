//! The Bonafide agent: attests the node and its workloads and serves them SVIDs.
