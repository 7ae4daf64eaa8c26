"""A run that was killed and resumed equals an uninterrupted one to the last digit."""

import itertools
import random
import time
from types import SimpleNamespace

import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from torch.utils.data import DataLoader

from overlock_mm.checkpoint import read_checkpoint
from overlock_mm.datasets.checks import DataError
from overlock_mm.engine.resumable_loader import ResumableLoader
from overlock_mm.engine.runner import build_runner
from tests.engine.small_runs import BATCH, IMAGES, Log, Noisy, config, train
from tools.train import apply_resume

CASES = {
    'epochs': dict(by_epoch=True),
    'iterations': dict(by_epoch=False, interval=4),
    'iterations, finite sampler': dict(by_epoch=False, interval=4),
    'workers': dict(by_epoch=True, workers=2),
    'iterations, workers': dict(by_epoch=False, interval=4, workers=2),
    'average': dict(by_epoch=True, ema=True),
    'mid-epoch': dict(by_epoch=True, save_by_epoch=False, interval=4),
    'mid-epoch, workers, average': dict(
        by_epoch=True, save_by_epoch=False, interval=4, ema=True, workers=2
    ),
    'size of batches': dict(by_epoch=True, model=dict(type='Dropping', resizes=True)),
    'end of an epoch by iterations': dict(by_epoch=True, save_by_epoch=False, interval=5),
}


@pytest.mark.parametrize('case', CASES)
def test_resumed_run_is_the_uninterrupted_one(case, tmp_path):
    def settings(name, **changes):
        cfg = config(tmp_path / name, **CASES[case], **changes)
        if 'finite' in case:
            cfg.train_dataloader.sampler.type = 'DefaultSampler'
        return cfg

    # The seed of the resumed run is left open: that of the first one counts.
    expected = train(settings('whole', randomness=dict(seed=7)))
    before = train(settings('killed', randomness=dict(seed=7)), Log(kill_after=9))
    after = train(settings('killed'), resume=True)

    first = min(after.losses)
    assert 0 < first < 9
    assert before.losses | after.losses == expected.losses
    assert after.batches == expected.batches[first:]
    final = 'epoch_3.pth' if (tmp_path / 'whole/epoch_3.pth').exists() else 'iter_15.pth'
    one, two = (read_checkpoint(tmp_path / name / final) for name in ('whole', 'killed'))
    for part in ('state_dict', 'optimizer', 'ema_state_dict', 'resume_state'):
        if part in one:
            torch.testing.assert_close(one[part], two[part], rtol=0, atol=0)
    assert one['message_hub']['runtime_info'].get('score') == two['message_hub'][
        'runtime_info'
    ].get('score')


def test_a_step_far_on_is_reached_without_loading_what_lies_before(tmp_path):
    cfg = config(tmp_path, by_epoch=False, interval=2, randomness=dict(seed=7))
    cfg.train_cfg.update(max_iters=2, val_interval=1000)
    train(cfg)
    path = tmp_path / 'iter_2.pth'
    checkpoint = read_checkpoint(path)
    checkpoint['meta']['iter'] = 100_000
    torch.save(checkpoint, path)

    cfg.train_cfg.max_iters = 100_003
    apply_resume(cfg, str(path))
    runner = build_runner(cfg)
    began = time.monotonic()
    runner.train()
    assert time.monotonic() - began < 30
    indices = itertools.islice(
        InfiniteSampler(runner.train_dataloader.dataset, seed=7), 100_000 * BATCH, 100_003 * BATCH
    )
    assert runner.train_dataloader.dataset.loaded == list(indices)


def test_samples_depend_on_seed_epoch_and_position_only(tmp_path):
    def samples(epoch, seed, workers):
        loader = DataLoader(Noisy(), batch_size=2, num_workers=workers, collate_fn=list)
        loader = ResumableLoader(loader, seed)
        loader.begin(epoch)
        state = random.getstate(), torch.get_rng_state()
        drawn = torch.stack([sample['inputs'] for batch in loader for sample in batch])
        assert random.getstate() == state[0]
        assert torch.equal(torch.get_rng_state(), state[1])
        return drawn

    first = samples(0, seed=0, workers=0)
    assert torch.equal(first, samples(0, seed=0, workers=2))
    assert not torch.equal(first, samples(1, seed=0, workers=0))
    assert not torch.equal(first, samples(0, seed=1, workers=0))


def test_processes_together_see_each_position_once():
    requests = []
    for rank in range(2):
        sampler = DefaultSampler(Noisy(), shuffle=False)
        sampler.rank, sampler.world_size, sampler.num_samples = rank, 2, 5
        loader = ResumableLoader(DataLoader(Noisy(), sampler=sampler, batch_size=2), 0, rank, 2)
        requests += [request for batch in loader.batches for request in batch]
    assert sorted(request.position for request in requests) == list(range(IMAGES))
    assert all(request.sample == request.position for request in requests)


def test_what_hooks_read_of_a_loader_is_kept():
    loader = DataLoader(Noisy(), sampler=DefaultSampler(Noisy()), batch_size=3, drop_last=True)
    resumable = ResumableLoader(loader, 0)
    assert (resumable.batch_size, resumable.drop_last, len(resumable)) == (3, True, 3)
    assert resumable.sampler is loader.sampler
    assert resumable.batch_sampler.batch_size == 3


@pytest.mark.parametrize(
    ('change', 'expected'),
    [
        ({}, 'continues exactly as an uninterrupted one would'),
        ({'resume_state': None}, 'keeps no states of random generators'),
        ({'processes': 2}, '2 process(es) wrote the checkpoint, 1 continue'),
        ({'epoch_length': 9}, 'an epoch had 9 batches and now has 5'),
        ({'accumulative_counts': 3}, 'gradients of 2 accumulated batch(es) are lost'),
        ({'cache': True}, 'CachedMosaic mix in earlier images'),
        ({'input_sizes': [(64, 64)]}, 'the size to which batches are resized is not kept'),
    ],
)
def test_the_log_says_whether_a_run_is_exact(change, expected, tmp_path, monkeypatch):
    cfg = config(tmp_path, by_epoch=True, randomness=dict(seed=7))
    cfg.train_cfg.max_epochs = 1
    train(cfg)
    path = tmp_path / 'epoch_1.pth'
    checkpoint = read_checkpoint(path)
    if 'resume_state' in change:
        del checkpoint['resume_state']
    else:
        state = checkpoint['resume_state']
        state['generators'] *= change.get('processes', 1)
        state['epoch_length'] = change.get('epoch_length', 5)
        state['input_sizes'] = change.get('input_sizes', [])
    torch.save(checkpoint, path)
    cfg.optim_wrapper.accumulative_counts = change.get('accumulative_counts', 1)
    cfg.log_level = 'INFO'
    if 'cache' in change:
        mosaic = type('CachedMosaic', (), {'results_cache': [], '__call__': lambda _, x: x})()
        monkeypatch.setattr(Noisy, 'pipeline', SimpleNamespace(transforms=[mosaic]), raising=False)
    train(cfg, resume=True)
    assert expected in ''.join(log.read_text() for log in tmp_path.glob('*/*.log'))


def test_a_pipeline_that_a_hook_has_put_in_place_is_watched(tmp_path, monkeypatch):
    class LoadNothing:
        def __call__(self, sample):
            raise RuntimeError('damaged')

    class Switch(Hook):
        def before_train_epoch(self, runner):
            runner.train_dataloader.dataset.pipeline = SimpleNamespace(transforms=[LoadNothing()])

    runner = build_runner(config(tmp_path, by_epoch=True))
    runner.register_hook(Switch())
    runner.train_loop  # noqa: B018  (is built at first access)
    runner.call_hook('before_train_epoch')
    load, *_ = runner.train_dataloader.dataset.pipeline.transforms
    with pytest.raises(DataError, match='a.bmp cannot be read'):
        load({'img_path': 'a.bmp'})
