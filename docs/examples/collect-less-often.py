"""Let Python look for garbage less often, as suits a master that starts hundreds of VMs at once."""

import gc

gc.set_threshold(1_000, 10, 250)
