import pytest
import torch
from tiny import tiny_images, tiny_vae

from ppl_vae.training.averaging import Average
from ppl_vae.training.fitting import fit
from ppl_vae.training.monitoring import mean_parts


def closed_form(path, decay):
    shares = torch.tensor([decay ** (len(path) - s) for s in range(1, len(path) + 1)], dtype=torch.float64)
    return torch.einsum("s,sd->d", shares / shares.sum(), torch.stack(path).double())


def test_the_average_of_a_known_path_is_in_closed_form_and_counts_are_the_last():
    path = [torch.tensor([1.0, -2.0]), torch.tensor([4.0, 0.0]), torch.tensor([-1.0, 8.0])]
    average = Average(0.5)
    for step, w in enumerate(path, 1):
        average.update([{"w": w, "n": torch.tensor(step)}, {}], step)
    ((kept, _),) = [average.tensors]
    assert kept["w"].tolist() == pytest.approx([(1 + 2 * 4 - 4) / 7, (-2 + 4 * 8) / 7])
    assert kept["n"] == 3
    assert path[2].tolist() == [-1, 8]
    with pytest.raises(ValueError, match="ema_decay: expected a number between 0 and 1; got 1"):
        Average(1)


@pytest.mark.filterwarnings("ignore:posterior collapse")  # of noise there is nothing to learn
def test_what_is_kept_and_monitored_are_the_averaged_weights_and_training_goes_on_from_its_own():
    x, ends = (tiny_images(30) > 127).float(), []
    for decay in (None, 0.8):
        vae, path = tiny_vae(event_shape=(1, 6, 6)), []

        def keep(vae=vae, path=path):
            path.append(torch.nn.utils.parameters_to_vector(vae.parameters()).detach())

        options = {"epochs": 3, "batch_size": 10, "learning_rate": 0.1, "ema_decay": decay, "stop": keep}
        history = fit(vae.model, vae.guide, x, validation=x[:8], **options, show_progress=False)
        ends.append((path, torch.nn.utils.parameters_to_vector(vae.parameters()).detach(), history, vae))
    (own, last, _, _), (path, averaged, history, vae) = ends
    assert torch.equal(torch.stack(own), torch.stack(path))  # the steps are the same
    assert torch.equal(last, own[-1])
    torch.testing.assert_close(averaged.double(), closed_form(path, 0.8), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(averaged, last, atol=1e-2)
    parts = mean_parts(vae.model, vae.guide, (x[:8],), seed=0)
    assert parts["elbo"] == history["validation_elbo"][-1]
