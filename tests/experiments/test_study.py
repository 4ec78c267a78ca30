import dataclasses

import pytest

from ppl_vae.experiments import evaluating, study
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.study import StudyConfig
from ppl_vae.experiments.training import train

pytestmark = pytest.mark.usefixtures("quick_ladder")


def test_an_interrupted_evaluation_ends_the_study_and_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    """Also where all images have samples by then, and the last ones fewer of them."""
    config = StudyConfig(num_images=5, num_samples=3)
    run = train(TrainConfig(model="dense-vae", epochs=1, train_images=60), tmp_path, show_progress=False)
    evaluate = evaluating.evaluate_run

    def interrupted(*args, **options):
        result, summary = evaluate(*args, **options)
        return dataclasses.replace(result, complete=False), summary

    monkeypatch.setattr(evaluating, "evaluate_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study._evaluate(run, tmp_path, config, False, lambda text: None)
    monkeypatch.setattr(evaluating, "evaluate_run", evaluate)
    said = []
    for _ in range(2):
        assert study._evaluate(run, tmp_path, config, False, said.append)["num_images"] == 5
    assert len(said) == 2  # of one evaluation by each method


def test_the_time_is_said_of_trainings_and_evaluations(tmp_path, monkeypatch, dataset):
    """1,000 steps an epoch of 0.1 s, compiled where that is less, and 12 images, each as long as 300 steps."""
    monkeypatch.setattr(study, "seconds_per_step", lambda config, dataset: 0.1)
    monkeypatch.setattr(study, "STEPS_PER_IMAGE", 300.0)
    configs = {name: TrainConfig(model=name, epochs=epochs) for name, epochs in (("dense-ae", 1), ("dense-vae", 4))}
    config, said = StudyConfig(batch_size=50, num_images=12), []
    study._say_time(configs, dataset, tmp_path, 50_000, config, said.append)
    minutes = ((20 + 100 / 2) + (20 + 400 / 2) + 12 * 300 * 0.1) / 60
    assert said == [f"{config.dataset}: 2 of 2 models to train and evaluate, about {minutes:.0f} min"]
