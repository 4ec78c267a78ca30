import pyro
import pyro.distributions as dist
import pytest
import torch

from ppl_vae.evaluation.quadrature import log_p_by_quadrature


@pytest.mark.parametrize("L", [1, 2])
def test_it_is_exact_on_a_linear_gaussian_model(ppca, L):
    pair, x = ppca(D=4, L=L, N=7, scale=0.3)
    exact = pair.exact.log_prob(x).double()
    log_p = log_p_by_quadrature(pair.model, x, points=400)
    torch.testing.assert_close(log_p, exact, atol=2e-5, rtol=1e-5)
    in_pieces = log_p_by_quadrature(pair.model, x, points=400, memory=10_000)
    torch.testing.assert_close(in_pieces, log_p, atol=1e-6, rtol=1e-6)


def test_further_arguments_come_with_their_data():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x, y = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([0.0, 1.0, -2.0])
    exact = dist.Normal(y, 2**0.5).log_prob(x).double()
    torch.testing.assert_close(log_p_by_quadrature(model, x, y, half_width=10.0), exact, atol=2e-5, rtol=1e-5)


def test_what_has_no_grid_is_refused(ppca):
    pair, x = ppca(L=3)
    with pytest.raises(ValueError, match=r"site 'z': expected a latent site on R or R\^2; got one on real\^3"):
        log_p_by_quadrature(pair.model, x)

    def model(x, latent):
        with pyro.plate("data", len(x)):
            latent()
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    coin, none = (lambda: pyro.sample("z", dist.Bernoulli(0.5))), (lambda: None)
    with pytest.raises(ValueError, match="got one on boolean"):
        log_p_by_quadrature(lambda x: model(x, coin), torch.zeros(2))
    with pytest.raises(ValueError, match="expected one latent site; got none"):
        log_p_by_quadrature(lambda x: model(x, none), torch.zeros(2))
