"""Variational autoencoders as probabilistic programs in Pyro, and log-likelihoods that carry their error.

    import ppl_vae as pv

The names of `__init__.pyi` are attributes of this package. Each is imported when it is first used, so that
`import ppl_vae` alone takes no time and imports no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
