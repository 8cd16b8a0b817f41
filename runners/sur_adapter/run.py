"""The experiment of SUR-adapter: sentences that draw like keywords, by an adapter before a frozen UNet.

1. base: the pipeline draws the test prompts as sentences and as keywords; what lies between is to be closed.
2. features: a language model reads every sentence (.llm_features).
3. train: the adapter learns by denoising, by the states of the keywords and by the language model (.losses); or the
   UNet learns the sentences itself (task.method=finetune).
4. evaluate: the trained system draws the same prompts from the same noise. Two judges, distances from real images and
   pairs of images say what has changed (.measure), on scenes and templates that no step has seen.
"""

from __future__ import annotations

from privlm.adapters.adapter import count_parameters
from privlm.config import Config
from privlm.diffusion.images import load_images
from privlm.diffusion.pipelines import open_pipeline
from privlm.fit import fit, plan_of
from privlm.job import Job
from privlm.training.trainer import Evaluation

from .config import weights_of
from .evaluation import draw, measures_of, report_base, report_trained, show
from .llm_features import features
from .predictor import predictor
from .system import System, base_artist, test_of
from .told import notes

__all__ = ["predictor", "run"]


def run(config: Config, job: Job) -> None:
    images = load_images(config.data)
    opened = open_pipeline(config.model)
    opened.unet.to(job.accelerator.device)
    plan = plan_of(config, len(images.train))
    test = test_of(config, images)
    measures = measures_of(config, test)
    job.note(*images.notes, *opened.notes, *notes(config, opened, images))

    with job.stage("base") as stage:
        base = draw(stage, test, base_artist(config, opened))
        report_base(stage, measures, base)

    vectors = None
    if weights_of(config.task).w_llm:
        vectors = features(config, job, [row.text for row in (*images.train, *images.validation)])

    system = System.of(config, opened, vectors)
    with job.stage("train") as stage:
        data = system.data(stage, images.train, augment=True)
        evaluation = None
        if images.validation:
            validation = system.data(stage, images.validation, augment=False)
            evaluation = Evaluation("validation", system.losses(stage, validation), "loss", higher_is_better=False)
        outcome = fit(stage, system.loaded, system.objective, data, evaluation=evaluation, plan=plan)

    with job.stage("evaluate") as stage:
        trained = draw(stage, test, system.artist())
        report_trained(stage, measures, trained, base)
        show(stage, test, trained["narrative"], base, config.task.judging.grid)
        trainable, total = count_parameters(system.loaded.model)
        stage.report(unit="parameters", trainable_parameters=trainable, parameters=total)
        stage.report(unit="steps", steps=outcome.steps)
    job.note(*measures.notes())
