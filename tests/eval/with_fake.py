"""A command of the package, with a network that costs nothing in Inception's place.

python -m tests.eval.with_fake flowtok_jax.eval.reference --images=...
"""

import importlib
import sys

from flowtok_jax.weights import nets
from tests.eval import fake

if __name__ == "__main__":
    nets.load_metric_net = fake.load_metric_net  # before others import it
    name, *arguments = sys.argv[1:]
    module = importlib.import_module(name)
    if name == "flowtok_jax.main":
        sys.argv = ["main", *arguments]  # where overrides are read off
        sys.exit(module.main(sys.argv))
    sys.exit(module.main(arguments))
