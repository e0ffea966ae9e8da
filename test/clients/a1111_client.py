"""webuiapi, a client of AUTOMATIC1111's API, against a running Atelier, whose address is in ATELIER_URL."""

import io
import os
import threading
import time
import unittest
from urllib.parse import urlparse

import webuiapi
from PIL import Image

URL = urlparse(os.environ["ATELIER_URL"])
# Small and quick: what is looked at is the way there and back.
QUICK = {"steps": 4, "seed": 7, "width": 256, "height": 256}


def client(**settings) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(host=URL.hostname, port=URL.port, **settings)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Pictures(unittest.TestCase):
    def setUp(self):
        self.api = client(sampler="Euler a")

    def test_txt2img_makes_a_picture(self):
        result = self.api.txt2img(prompt="a red mug", negative_prompt="blurry", **QUICK)
        self.assertEqual(result.image.size, (256, 256))
        self.assertEqual((result.info["seed"], result.info["sampler_name"], result.info["steps"]), (7, "Euler a", 4))
        self.assertEqual(result.info["cfg_scale"], 7)
        self.assertFalse(result.info["atelier"]["receipts"][0]["simulated"])
        self.assertIn("Seed: 7, Size: 256x256", result.info["infotexts"][0])

    def test_txt2img_makes_the_same_picture_from_the_same_seed_and_others_from_others(self):
        first = self.api.txt2img(prompt="a red mug", **QUICK)
        again = self.api.txt2img(prompt="a red mug", **QUICK)
        batch = self.api.txt2img(prompt="a red mug", batch_size=2, n_iter=2, **QUICK)
        self.assertEqual(png(first.image), png(again.image))
        self.assertEqual(batch.info["all_seeds"], [7, 8, 9, 10])
        self.assertEqual(len({png(image) for image in batch.images}), 4)

    def test_the_spacing_of_the_noise_levels_changes_the_picture(self):
        made = {
            png(self.api.txt2img(prompt="a red mug", sampler_name="DPM++ 2M", scheduler=scheduler, **QUICK).image)
            for scheduler in ("Automatic", "Karras")
        }
        self.assertEqual(len(made), 2)
        old = self.api.txt2img(prompt="a red mug", sampler_name="DPM++ 2M Karras", **QUICK)
        self.assertIn(png(old.image), made)
        self.assertTrue(old.info["atelier"]["receipts"][0]["karras_sigmas"])

    def test_img2img_starts_from_a_picture(self):
        red = Image.new("RGB", (256, 256), (220, 20, 20))
        result = self.api.img2img(images=[red], prompt="a red mug", denoising_strength=0.3, **QUICK)
        self.assertEqual(result.image.size, (256, 256))
        self.assertEqual(result.info["denoising_strength"], 0.3)
        r, g, b = result.image.resize((1, 1)).getpixel((0, 0))
        self.assertGreater(r, max(g, b) + 50)

    def test_names_what_is_not_served(self):
        for asked in ({"enable_hr": True}, {"restore_faces": True}, {"sampler_name": "Heun"}, {"styles": ["anime"]}):
            with self.assertRaises(RuntimeError) as refused:
                self.api.txt2img(prompt="a red mug", **asked)
            status, text = refused.exception.args
            self.assertEqual(status, 422)
            self.assertIn(next(iter(asked)), text)

    def test_names_what_changes_nothing(self):
        result = self.api.txt2img(prompt="a red mug", save_images=True, **QUICK)
        self.assertIn("save_images", result.info["atelier"]["ignored"])


class Lists(unittest.TestCase):
    def setUp(self):
        self.api = client()

    def test_samplers_and_schedulers(self):
        self.assertIn("DPM++ 2M", self.api.util_get_sampler_names())
        self.assertIn("karras", self.api.util_get_scheduler_names())
        for sampler in self.api.util_get_sampler_names():
            eta = 0 if sampler == "DDIM" else 1  # the client's own default is 1
            result = self.api.txt2img(prompt="a red mug", sampler_name=sampler, eta=eta, **QUICK)
            self.assertEqual(result.info["sampler_name"], sampler)

    def test_models_and_options(self):
        models = self.api.get_sd_models()
        self.assertEqual([model["model_name"] for model in models], ["atelier-tiny"])
        self.assertEqual(self.api.util_get_current_model(), models[0]["title"])
        self.api.util_set_model(models[0]["title"])
        override = {"sd_model_checkpoint": models[0]["title"]}
        result = self.api.txt2img(prompt="a red mug", override_settings=override, **QUICK)
        self.assertEqual(result.info["sd_model_name"], "atelier-tiny")

    def test_everything_else_that_the_client_asks_for_is_answered(self):
        api = self.api
        for get in (
            api.get_cmd_flags,
            api.get_sd_vae,
            api.get_upscalers,
            api.get_latent_upscale_modes,
            api.get_loras,
            api.get_hypernetworks,
            api.get_face_restorers,
            api.get_realesrgan_models,
            api.get_prompt_styles,
            api.get_embeddings,
            api.get_memory,
            api.get_scripts,
            api.refresh_checkpoints,
        ):
            answer = get()
            self.assertFalse(isinstance(answer, dict) and "code" in answer, f"{get.__name__}: {answer}")


class Progress(unittest.TestCase):
    def test_follows_a_call_and_interrupts_it(self):
        api = client(sampler="Euler a")
        api.util_wait_for_ready(check_interval=0.1)
        results = []
        # More than it can make before it is interrupted.
        asked = {"prompt": "a red mug", "steps": 12, "batch_size": 16, "width": 256, "height": 256}
        call = threading.Thread(target=lambda: results.append(api.txt2img(**asked)))
        call.start()
        seen = self.first(lambda: client().get_progress(), lambda told: told["current_image"] is not None)
        self.assertEqual((seen["state"]["job"], seen["state"]["sampling_steps"]), ("txt2img", 12))
        self.assertTrue(0 < seen["progress"] < 1 and seen["eta_relative"] > 0, seen["progress"])
        self.assertEqual(client().interrupt(), {"found": True})
        call.join(timeout=30)
        self.assertFalse(call.is_alive())
        self.assertLess(len(results[0].images), 16)
        self.assertTrue(results[0].info["atelier"]["interrupted"])
        self.assertEqual(client().get_progress()["state"]["job_count"], 0)

    def first(self, look, enough, within_s=60):
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            seen = look()
            if enough(seen):
                return seen
            time.sleep(0.05)
        self.fail("it never came to that")


if __name__ == "__main__":
    unittest.main(verbosity=2)
