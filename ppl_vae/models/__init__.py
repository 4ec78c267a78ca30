"""Models as Pyro pairs: a `model` p(x, z) and a `guide` q(z|x), side by side."""

from ppl_vae.models.autoencoder import Autoencoder as Autoencoder
from ppl_vae.models.discrete import DiscreteVAE as DiscreteVAE
from ppl_vae.models.hierarchical import HierarchicalVAE as HierarchicalVAE
from ppl_vae.models.labelled import ConditionalVAE as ConditionalVAE
from ppl_vae.models.labelled import SemiSupervisedVAE as SemiSupervisedVAE
from ppl_vae.models.ladder import LadderLayer as LadderLayer
from ppl_vae.models.ladder import LadderVAE as LadderVAE
from ppl_vae.models.pair import JointEncoder as JointEncoder
from ppl_vae.models.pair import PyroPair as PyroPair
from ppl_vae.models.ppca import PPCA as PPCA
from ppl_vae.models.vae import VAE as VAE
