from rebalance.versions import require_known

require_known()  # before the modules of this folder, which lean on the host's insides
