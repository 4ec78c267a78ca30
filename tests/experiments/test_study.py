import dataclasses

import pytest

from ppl_vae.experiments import study
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.study import StudyConfig
from ppl_vae.experiments.training import train


def test_an_interrupted_evaluation_ends_the_study_and_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    """Also where all images have samples by then, and the last ones fewer of them."""
    config = StudyConfig(num_images=5, num_samples=3)
    run = train(TrainConfig(model="dense-vae", epochs=1, train_images=60), tmp_path, show_progress=False)
    evaluate = study.evaluate_run

    def interrupted(*args, **options):
        result, summary = evaluate(*args, **options)
        return dataclasses.replace(result, complete=False), summary

    monkeypatch.setattr(study, "evaluate_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study._evaluate(run, tmp_path, config, False, lambda text: None)
    monkeypatch.setattr(study, "evaluate_run", evaluate)
    said = []
    for _ in range(2):
        assert study._evaluate(run, tmp_path, config, False, said.append)["num_images"] == 5
    assert len(said) == 2  # of one evaluation
