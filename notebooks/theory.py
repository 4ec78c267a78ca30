# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The theory, with numbers
#
# What the objective of a VAE is, shown on a model in which every term is known: probabilistic PCA, whose $\log p(x)$
# and $p(z|x)$ have closed forms. What is said is checked in place, by an `assert` against a closed form or within an
# error bar. A few minutes on one CPU core.

# %%
# %matplotlib inline
import math
import os
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch.distributions import kl_divergence

import ppl_vae as pv
from ppl_vae import plots
from ppl_vae.evaluation.importance import log_weights
from ppl_vae.kl_weights import Constant
from ppl_vae.objectives import AnalyticKL
from ppl_vae.plots import OKABE_ITO
from ppl_vae.programs import own_param_store, seeded
from ppl_vae.training.monitoring import elbo_parts

SHORT = "PPL_VAE_SHORT" in os.environ  # fewer draws and epochs: what is asserted holds in this form too
EPOCHS, IMAGES, DRAWS = (3, 1000, 10_000) if SHORT else (30, 9000, 200_000)

# %% [markdown]
# ## A model in which everything is known
#
# $z \sim N(0, I)$ in 2 dimensions, $x = W z + \mu + \sigma e$ in 8, and 500 data drawn from it.

# %%
D, L, N = 8, 2, 500
with seeded(0):
    truth = pv.PPCA((D,), L).double().requires_grad_(False)
    truth.W *= 2
    truth.log_scale -= 0.5
    x = truth.generate(N).sample()
log_p, posterior = truth.log_prob(x), truth.encode(x)  # log p(x) and p(z|x) of each datum
print(f"log p(x) = {log_p.mean():.4f} nats per datum, on average")


# %% [markdown]
# ## log p(x) = ELBO + KL(q || p(z|x))
#
# For a normal $q(z|x) = N(m, S)$ the ELBO has a closed form too, which does not look at the posterior:
#
# $$\mathrm{ELBO} = E_q[\log p(x|z)] - \mathrm{KL}(q \,\Vert\, p(z)), \qquad
# E_q[\log p(x|z)] = \log N(x; W m + \mu, \sigma^2 I) - \frac{\mathrm{tr}(W^T W S)}{2 \sigma^2}.$$


# %%
def parts(ppca, q, x):
    """E_q[log p(x|z)] and KL(q || p(z)) of each datum, for a MultivariateNormal q of batch shape (data,)."""
    scale, m, S = ppca.log_scale.exp(), q.mean, q.covariance_matrix
    spread = torch.einsum("kl,nlk->n", ppca.W.T @ ppca.W, S)
    reconstruction = dist.Normal(ppca.decode(m), scale).to_event(1).log_prob(x) - spread / (2 * scale**2)
    prior = dist.MultivariateNormal(torch.zeros_like(m), torch.eye(m.shape[-1]).to(m))
    return reconstruction, kl_divergence(q, prior)


def elbo(ppca, q, x):
    reconstruction, kl = parts(ppca, q, x)
    return reconstruction - kl


# %% [markdown]
# Four choices of $q$: the prior; the posterior with half its standard deviations; the best $q$ that factorises, whose
# precisions are the diagonal of the posterior's; and the posterior itself.

# %%
m, S, P = posterior.mean, posterior.covariance_matrix, posterior.precision_matrix
factorised = torch.diag_embed(1 / P.diagonal(dim1=-2, dim2=-1))
guides = {
    "the prior": dist.MultivariateNormal(torch.zeros_like(m), torch.eye(L).double()),
    "too narrow": dist.MultivariateNormal(m, S / 4),
    "best factorised": dist.MultivariateNormal(m, factorised),
    "the posterior": posterior,
}
print(f"{'q(z|x)':16} {'ELBO':>10} {'KL(q||p(z|x))':>14} {'sum':>10} {'log p(x)':>10}   nats, mean over the data")
for name, q in guides.items():
    bound, gap = elbo(truth, q, x), kl_divergence(q, posterior)
    assert torch.allclose(bound + gap, log_p, rtol=0, atol=1e-9)  # for each datum
    assert (gap > -1e-9).all()
    print(f"{name:16} {bound.mean():10.4f} {gap.mean():14.4f} {(bound + gap).mean():10.4f} {log_p.mean():10.4f}")


# %% [markdown]
# The sum is the same whatever $q$ is. So to maximise the ELBO over $q$ is to minimise a KL to a posterior that need
# not be known.
#
# ## Two derivations of it
#
# With the weight $w(z) = p(x, z) / q(z|x)$:
#
# | | by Jensen's inequality | by the KL |
# |---|---|---|
# | starts from | $p(x) = E_q[w]$ | $p(x) = p(x, z) / p(z \mid x)$, for every $z$ |
# | so | $\log p(x) = \log E_q[w] \ge E_q[\log w]$ | $\log p(x) = \log w(z) + \log \frac{q(z \mid x)}{p(z \mid x)}$ |
# | the gap is | $\log E_q[w] - E_q[\log w]$ | the mean of the last term, $\mathrm{KL}(q \,\Vert\, p(z \mid x))$ |
# | closed by | more draws, $\log \frac1K \sum_k w_k$ | a better $q$ |
#
# The draws come from a Pyro guide, the weights from the package. First the right column, for each single draw:


# %%
def guide_of(q):
    """A Pyro guide that draws z from q, whatever x is."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q)

    return guide


q = dist.MultivariateNormal(m[0], 0.7 * S[0]).expand((1,))  # for the first datum
with seeded(1):
    log_w = log_weights(truth.model, guide_of(q), x[:1], num_samples=DRAWS)[:, 0]
with seeded(1):
    z = q.sample((DRAWS, 1))[:, 0, 0]  # the same draws
log_ratio = q.log_prob(z) - dist.MultivariateNormal(m[0], S[0]).log_prob(z)
assert torch.allclose(log_w + log_ratio, log_p[0], rtol=0, atol=1e-9)
for k in range(4):
    print(f"log w = {log_w[k]:9.4f}    log q/p(z|x) = {log_ratio[k]:7.4f}    sum = {log_w[k] + log_ratio[k]:.4f}")

# %% [markdown]
# Their means are the two parts, and the log of the mean weight is $\log p(x)$:

# %%
kl = kl_divergence(q, dist.MultivariateNormal(m[:1], S[:1]))[0]
se = log_w.std() / math.sqrt(DRAWS)
w = (log_w - log_p[0]).exp()  # in units of p(x)
log_mean, log_mean_se = log_p[0] + w.mean().log(), w.std() / w.mean() / math.sqrt(DRAWS)
assert abs(log_w.mean() - (log_p[0] - kl)) < 4 * se
assert abs(log_ratio.mean() - kl) < 4 * se
assert abs(log_mean - log_p[0]) < 4 * log_mean_se
gap, gap_se = log_mean - log_w.mean(), torch.hypot(se, log_mean_se)
print(f"mean of logs  {log_w.mean():9.4f} ± {se:.4f}    exact ELBO     {log_p[0] - kl:9.4f}")
print(f"log of mean   {log_mean:9.4f} ± {log_mean_se:.4f}    exact log p(x) {log_p[0]:9.4f}")
print(f"Jensen's gap  {gap:9.4f} ± {gap_se:.4f}    exact KL       {kl:9.4f}")


# %% [markdown]
# ## The gradient: two estimators
#
# The ELBO is a mean over draws from $q$, whose parameters $\phi$ are what is wanted. Either the draw is written as a
# function of them, $z = m + s \epsilon$, and the gradient goes through it; or the gradient is that of the density,
#
# $$\nabla_\phi E_q[f] = E_q[f(z)\, \nabla_\phi \log q(z|x)], \qquad f = \log w,$$
#
# which asks nothing of $f$ and works for discrete $z$. Pyro takes the first where a distribution has `rsample`, and
# the second else. To see it take the second, a normal distribution is told that it has none. A constant subtracted
# from $f$ leaves the mean as it is and the variance not: a third estimator has the best guess at $f$ there is here,
# $\log p(x)$, for a baseline.
#
# `DRAWS` copies of one datum, each with a single draw and parameters of its own, give as many independent estimates.

# %%
copies = x[0].expand(DRAWS, D)
start = m[0] + 0.5 * S[0].diagonal().sqrt(), 0.8 * factorised[0].diagonal().sqrt()  # m and s: off, and a bit narrow


def estimates(*, reparameterised, baseline=0.0):
    """Gradients of the ELBO in m and log s, an estimate from each copy: (DRAWS, 2 L)."""
    loc, log_s = (t.expand(DRAWS, L).clone().requires_grad_() for t in (start[0], start[1].log()))

    def model(x):
        with pyro.plate("data", DRAWS, dim=-1):
            z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(L).double(), torch.eye(L).double()))
            pyro.sample("x", dist.Normal(truth.decode(z), truth.log_scale.exp()).to_event(1), obs=x)
            pyro.factor("baseline", torch.full((DRAWS,), -baseline))

    def guide(x):
        with pyro.plate("data", DRAWS, dim=-1):
            q = dist.MultivariateNormal(loc, scale_tril=torch.diag_embed(log_s.exp()))
            pyro.sample("z", q.has_rsample_(reparameterised))

    with own_param_store(), seeded(0):
        Trace_ELBO().differentiable_loss(model, guide, copies).backward()
    return -torch.cat([loc.grad, log_s.grad], dim=1)


gradients = {
    "reparameterised": estimates(reparameterised=True),
    "score function": estimates(reparameterised=False),
    "score function, baseline": estimates(reparameterised=False, baseline=log_p[0].item()),
}

# the gradient itself, from the closed form
loc, log_s = (t.clone().requires_grad_() for t in (start[0], start[1].log()))
elbo(truth, dist.MultivariateNormal(loc[None], torch.diag((2 * log_s).exp())[None]), x[:1]).sum().backward()
exact = torch.cat([loc.grad, log_s.grad])

variance, spread = {}, {}
print(f"{'':26} {'d/dm1':>18} {'d/dm2':>18} {'d/dlog s1':>18} {'d/dlog s2':>18}")
print(f"{'exact':26} " + " ".join(f"{g:18.4f}" for g in exact))
for name, g in gradients.items():
    se = g.std(0) / math.sqrt(DRAWS)
    assert (abs(g.mean(0) - exact) < 4 * se).all(), name  # unbiased
    squares = (g - exact).square().sum(1)
    variance[name], spread[name] = squares.mean().item(), squares.std().item() / math.sqrt(DRAWS)
    print(f"{name:26} " + " ".join(f"{a:9.4f} ± {b:6.4f}" for a, b in zip(g.mean(0), se, strict=True)))

# %% [markdown]
# All are unbiased. Their variances (the trace of the covariance of one estimate) are not alike. That of the first, in
# $m$, is known: its estimate is $\nabla_z \log p(x, z)$ at the draw, linear in $z$, with covariance
# $P\,\mathrm{diag}(s^2)\,P$ for a posterior of precision $P$.

# %%
g, known = gradients["reparameterised"][:, :L], (P[0] @ torch.diag(start[1] ** 2) @ P[0]).diagonal()
assert (abs(g.var(0) / known - 1) < 5 * math.sqrt(2 / DRAWS)).all()  # a normal's variance has that standard error
for name in gradients:
    ratio = variance[name] / variance["reparameterised"]
    error = ratio * math.hypot(spread[name] / variance[name], spread["reparameterised"] / variance["reparameterised"])
    print(f"{name:26} variance {variance[name]:9.2f} ± {spread[name]:5.2f}    ratio {ratio:6.1f} ± {error:.1f}")
    if name == "score function":
        assert ratio - 4 * error > 10
    elif name != "reparameterised":
        assert ratio - 4 * error > 1

# %% [markdown]
# So many more draws a step would be needed for the same noise, and the more the larger $|f|$ is: hundreds of nats for
# an image. That is why VAEs could be trained at all, and why discrete latents are hard.
#
# ## EM
#
# The ELBO is a function of the model's parameters $\theta$ and of $q$. The E step maximises it over $q$: the posterior,
# where ELBO and $\log p(x)$ touch. The M step maximises it over $\theta$ with $q$ held. What the ELBO gains, $\log
# p(x)$ gains at least, so neither step can lose. For PPCA both have closed forms (Tipping and Bishop, 1999), and so
# has the end, `PPCA.maximum_likelihood`.


# %%
@torch.no_grad()
def m_step(ppca, q, x):
    """W and scale that maximise the mean of elbo(ppca, q, x), for data of mean `ppca.mean`."""
    centred, m, S = x - ppca.mean, q.mean, q.covariance_matrix
    second = m.T @ m + S.sum(0)  # sum over the data of E[z z^T]
    W = torch.linalg.solve(second, m.T @ centred).T
    ppca.W.copy_(W)
    squares = centred.square().sum() - 2 * (centred * (m @ W.T)).sum() + (W.T @ W * second).sum()
    ppca.log_scale.copy_(0.5 * (squares / x.numel()).log())


with seeded(3):
    ppca = pv.PPCA((D,), L).double()
ppca.mean.data = x.mean(0)
best = pv.PPCA.maximum_likelihood(x, L).log_prob(x).mean().item()
path = []  # (ELBO, log p(x)) after each half step
q = dist.MultivariateNormal(torch.zeros_like(m), torch.eye(L).double())
print(f"{'':8} {'ELBO':>10} {'log p(x)':>10} {'gap':>8}")
for step in range(60):
    for half in ("E", "M"):
        if half == "E":
            q = ppca.encode(x)
        else:
            m_step(ppca, q, x)
        with torch.no_grad():
            path.append((elbo(ppca, q, x).mean().item(), ppca.log_prob(x).mean().item()))
        q = dist.MultivariateNormal(q.mean.detach(), q.covariance_matrix.detach())
        if step < 4:
            bound, exact_log_p = path[-1]
            print(f"{step + 1:3} {half:4} {bound:10.4f} {exact_log_p:10.4f} {abs(exact_log_p - bound):8.4f}")

bounds, log_ps = torch.tensor(path, dtype=torch.float64).unbind(1)
assert (bounds.diff() > -1e-10).all()  # no half step loses
assert (log_ps - bounds > -1e-10).all()
assert (abs(log_ps - bounds)[::2] < 1e-10).all()  # they touch after each E step
assert abs(log_ps[-1] - best) < 1e-4
print(f"at the end {log_ps[-1]:10.4f}; the maximum, by eigenvectors {best:10.4f}")

# %%
some = 16
figure, ax = plots.figure(7, 3.2)
half_steps = range(1, some + 1)
ax.step(half_steps, log_ps[:some], where="mid", color=OKABE_ITO["vermilion"], label="log p(x)")
ax.step(half_steps, bounds[:some], where="mid", color=OKABE_ITO["blue"], label="ELBO")
ax.axhline(best, color=OKABE_ITO["black"], ls=":", label="maximum of log p(x)")
ax.set_xticks(half_steps, ["E", "M"] * (some // 2))
ax.set(xlabel="half step", ylabel="nats per datum")
ax.legend(frameon=False, loc="lower right")
figure

# %% [markdown]
# A VAE does both at once, in part: one gradient step for encoder and decoder together. It is still EM's: where $q$ is
# the posterior, the ELBO's gradient in $\theta$ is that of $\log p(x)$.

# %%
with seeded(4):
    ppca = pv.PPCA((D,), L).double()
q = ppca.encode(x)
held = dist.MultivariateNormal(q.mean.detach(), q.covariance_matrix.detach())
of_elbo = torch.autograd.grad(elbo(ppca, held, x).mean(), [*ppca.parameters()])
of_log_p = torch.autograd.grad(ppca.log_prob(x).mean(), [*ppca.parameters()])
for (name, _), a, b in zip(ppca.named_parameters(), of_elbo, of_log_p, strict=True):
    assert torch.allclose(a, b, rtol=0, atol=1e-10)
    print(f"{name:10} norm of the gradient: of the ELBO {a.norm():.6f}, of log p(x) {b.norm():.6f}")

# %% [markdown]
# ## lambda: what a reconstruction costs
#
# Often the loss is written with a weight between its two parts (equation 5 of the report; $\beta$ in the beta-VAE),
#
# $$\mathcal{L}_\lambda = E_q \lVert x - \hat x(z) \rVert^2 + \lambda\, \mathrm{KL}(q(z|x) \,\Vert\, p(z)).$$
#
# With a normal likelihood $-\log p(x|z) = \lVert x - \hat x \rVert^2 / 2\sigma^2 + \frac{D}{2} \log 2 \pi \sigma^2$.
# So $\mathcal{L}_\lambda$ is $\lambda$ times the negative ELBO of the likelihood with $\lambda = 2\sigma^2$, and a
# constant: to choose $\lambda$ is to choose how precise the pixels are. Shown by gradients, with the same noise: one
# network with the squared error and weight $\lambda$, and the same with weight 1 and that $\sigma$.

# %%
data, observe = pv.load("mnist-mini"), pv.Observe(pv.Scale(), pv.NoNoise())
train, test = data.train[:IMAGES], data.test[:1000]
(images,) = observe.frozen(train, seed=0)
(held_out,) = observe.frozen(test, seed=0)
pixels = images[0].numel()
SQUARED_ERROR = f"gaussian:scale={math.sqrt(0.5)}"  # 2 sigma^2 = 1


def dense_vae(likelihood):
    config = pv.TrainConfig(model="dense-vae", likelihood=likelihood, encoding="scale", latent_size=20)
    return pv.build(config, data.image_shape)


def gradient(likelihood, weight):
    vae = dense_vae(likelihood)
    with own_param_store(), seeded(0):
        loss = AnalyticKL().weighted(Constant(weight)).differentiable_loss(vae.model, vae.guide, images[:100])
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*vae.parameters()])])


for lam in (0.01, 0.1, 1.0):
    weighted, normal = gradient(SQUARED_ERROR, lam), lam * gradient(f"gaussian:scale={math.sqrt(lam / 2)}", 1.0)
    off = (weighted - normal).norm() / weighted.norm()
    assert off < 1e-4  # rounding
    print(f"lambda = {lam:4}: gradients of norm {weighted.norm():.3f} and {normal.norm():.3f}, {off:.0e} apart")

# %% [markdown]
# ### What is bought for it
#
# The KL is a rate, nats spent on a latent; the squared error a distortion. For the linear VAE the trade has a closed
# form: of the eigenvalues $l_i$ of the data's covariance, those above the water level $\sigma^2 = \lambda / 2$ get a
# dimension of the latent, the others none,
#
# $$\text{rate} = \frac12 \sum_{i \le L} \log^+ \frac{l_i}{\sigma^2}, \qquad
# \text{distortion} = \sum_{i \le L} \min(l_i, \sigma^2) + \sum_{i > L} l_i,$$
#
# which for $L = D$ is Shannon's rate-distortion function of a normal source, by reverse water-filling. A large
# $\lambda$ drowns a direction of the latent after another: posterior collapse, and no fault of the optimiser's
# (James Lucas, George Tucker, Roger Grosse, Mohammad Norouzi: Don't Blame the ELBO!, 2019, arXiv:1911.02469).

# %%
flat = images.flatten(1).double()
eigenvalues, U = torch.linalg.eigh(torch.cov(flat.T, correction=0))
eigenvalues, U = eigenvalues.flip(0).clamp(min=0), U.flip(1)
LATENT = 20
coded, rest = eigenvalues[:LATENT], eigenvalues[LATENT:].sum()


def linear_vae(lam):
    """The PPCA that minimises the loss at lambda."""
    ppca = pv.PPCA((pixels,), LATENT).double().requires_grad_(False)
    ppca.W.copy_(U[:, :LATENT] * (coded - lam / 2).clamp(min=0).sqrt())
    ppca.mean.copy_(flat.mean(0))
    ppca.log_scale.fill_(0.5 * math.log(lam / 2))
    return ppca


def rate_and_distortion(ppca, x):
    """Of each datum, exactly: the KL in nats, and the mean squared error summed over pixels."""
    reconstruction, kl = parts(ppca, ppca.encode(x), x)
    variance = (2 * ppca.log_scale).exp()
    return kl, -2 * variance * (reconstruction + pixels / 2 * (2 * math.pi * variance).log())


LAMBDAS = [0.02, 0.4, 6.4] if SHORT else [0.02, 0.1, 0.4, 1.6, 6.4]
linear = {}
print(f"{'lambda':>7} {'codes in use':>13} {'rate':>8} {'closed form':>12} {'distortion':>11} {'closed form':>12}")
for lam in LAMBDAS:
    ppca, level = linear_vae(lam), lam / 2
    rate, distortion = (t.mean() for t in rate_and_distortion(ppca, flat))
    known = (coded / level).log().clamp(min=0).sum() / 2, coded.clamp(max=level).sum() + rest
    assert abs(rate - known[0]) < 1e-6
    assert abs(distortion - known[1]) < 1e-6
    in_use = int((coded > level).sum())
    print(f"{lam:7} {in_use:13} {rate:8.3f} {known[0]:12.3f} {distortion:11.3f} {known[1]:12.3f}")
    linear[lam] = rate_and_distortion(ppca, held_out.flatten(1).double())

# %% [markdown]
# A likelihood whose $\sigma$ is learned chooses $\lambda$ by itself: at the maximum, $\sigma^2$ is the distortion per
# pixel.

# %%
learned = pv.PPCA.maximum_likelihood(flat, LATENT)
chosen = 2 * (2 * learned.log_scale).exp().item()
distortion = rate_and_distortion(learned.requires_grad_(False), flat)[1].mean().item()
assert math.isclose(chosen, 2 * distortion / pixels, rel_tol=1e-6)
print(f"lambda = 2 sigma^2 = {chosen:.5f}; twice the distortion per pixel = {2 * distortion / pixels:.5f}")

# %% [markdown]
# ### With networks
#
# The same losses, with a dense VAE, on images that neither was trained on. It is the better one, but for the largest
# $\lambda$, where hardly a dimension of the latent is worth its price: there the linear VAE has its optimum in closed
# form, and the network what some epochs find.

# %%
dense = {}
for lam in LAMBDAS:
    vae = dense_vae(SQUARED_ERROR)
    loss = AnalyticKL().weighted(Constant(lam))
    pv.fit(vae.model, vae.guide, train, encode=observe, elbo=loss, epochs=EPOCHS, show_progress=False)
    found = elbo_parts(vae.model, vae.guide, held_out)
    dense[lam] = found.kl.double(), -found.reconstruction.double() - pixels / 2 * math.log(math.pi)


def paired(a, b):
    """Mean of a - b and its standard error."""
    return (a - b).mean().item(), (a - b).std().item() / math.sqrt(len(a))


print(f"{'lambda':>7} {'rate':>8} {'distortion':>11} {'loss':>8}   loss less that of the linear VAE")
for lam in LAMBDAS:
    (rate, distortion), (linear_rate, linear_distortion) = dense[lam], linear[lam]
    loss = distortion + lam * rate
    better, se = paired(loss, linear_distortion + lam * linear_rate)
    print(f"{lam:7} {rate.mean():8.2f} {distortion.mean():11.2f} {loss.mean():8.2f}   {better:8.2f} ± {se:.2f}")
    assert SHORT or lam > 2 or better < -4 * se  # it takes some training
for name, points in (("linear", linear), ("dense", dense)):
    for less, more in pairwise(LAMBDAS):
        difference, se = paired(points[less][0], points[more][0])
        assert difference > 4 * se, (name, less)  # the rate falls
        difference, se = paired(points[more][1], points[less][1])
        assert difference > 4 * se, (name, less)  # and the distortion rises

# %%
figure, ax = plots.figure(6.5, 4)


def means(points):
    """Rates and distortions, to be plotted."""
    return zip(*((rate.mean(), distortion.mean()) for rate, distortion in points), strict=True)


flat_held_out, steps = held_out.flatten(1).double(), torch.logspace(-2, 1.2, 10 if SHORT else 30).tolist()
finer = [rate_and_distortion(linear_vae(lam), flat_held_out) for lam in steps]
ax.plot(*means(finer), color=OKABE_ITO["vermilion"], label="linear VAE")
ax.plot(*means(linear.values()), "s", color=OKABE_ITO["vermilion"])
ax.plot(*means(dense.values()), "o", color=OKABE_ITO["blue"], label="dense VAE")
for lam, (rate, distortion) in dense.items():
    at = rate.mean(), distortion.mean()
    ax.annotate(f"λ = {lam}", at, (-4, -4), textcoords="offset points", ha="right", va="top")
ax.set(
    xlabel="rate: KL [nats per image]", ylabel="distortion: squared error per image", xlim=(-10, None), ylim=(0, None)
)
ax.legend(frameon=False)
figure

# %% [markdown]
# $\lambda$ is the slope: where a curve is best for $\lambda$, a nat more buys $\lambda$ of squared error. No point of
# the plane is the right one; what the pixels' noise is decides, or $\log p(x)$ of a likelihood that learns it
# (Alexander Alemi et al.: Fixing a Broken ELBO, 2018, arXiv:1711.00464).
