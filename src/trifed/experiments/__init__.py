"""Methods × partitions × seeds under equal conditions: planned, run in processes, digested with intervals."""
