"""OpenAI's Python client against a running Atelier, whose address is in ATELIER_URL."""

import base64
import os
import struct
import unittest

import openai

client = openai.OpenAI(base_url=os.environ["ATELIER_URL"] + "/v1", api_key="none is asked for", max_retries=0)
# Small and quick: what is looked at is the way there and back.
QUICK = {"steps": 4, "seed": 7}


def size_of(b64_json: str) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    data = base64.b64decode(b64_json, validate=True)
    assert data.startswith(b"\x89PNG\r\n\x1a\n"), data[:8]
    return struct.unpack(">II", data[16:24])


def picture() -> bytes:
    answer = client.images.generate(model="gpt-image-1", prompt="a red mug", size="256x256", extra_body=QUICK)
    return base64.b64decode(answer.data[0].b64_json)


class Generate(unittest.TestCase):
    def test_makes_a_picture_under_a_name_of_openais(self):
        answer = client.images.generate(model="gpt-image-1", prompt="a red mug", size="256x256", extra_body=QUICK)
        self.assertEqual([size_of(image.b64_json) for image in answer.data], [(256, 256)])
        self.assertEqual((answer.size, answer.output_format, answer.usage.total_tokens), ("256x256", "png", 0))
        self.assertEqual(answer.receipts[0]["model"], "atelier-tiny")

    def test_makes_the_same_picture_from_the_same_seed(self):
        self.assertEqual(picture(), picture())

    def test_makes_more_pictures_than_the_model_does_at_once(self):
        answer = client.images.generate(prompt="a red mug", n=10, size="128x128", extra_body={"steps": 1})
        self.assertEqual(len({image.b64_json for image in answer.data}), 10)
        self.assertEqual(len(answer.receipts), 2)

    def test_names_what_changed_nothing(self):
        raw = client.images.with_raw_response.generate(
            model="dall-e-3", prompt="x", quality="hd", style="vivid", size="128x128", extra_body=QUICK
        )
        self.assertEqual(raw.headers["x-atelier-ignored"], "quality, style")
        self.assertEqual(raw.parse().ignored, ["quality", "style"])

    def test_streams_partial_images_and_the_picture(self):
        stream = client.images.generate(
            prompt="a red mug", size="256x256", stream=True, partial_images=2, extra_body={"steps": 9, "seed": 7}
        )
        events = list(stream)
        kinds = ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
        self.assertEqual([event.type for event in events], kinds)
        self.assertEqual([event.partial_image_index for event in events[:2]], [0, 1])
        self.assertEqual(size_of(events[0].b64_json), (32, 32))
        self.assertEqual(size_of(events[2].b64_json), (256, 256))

    def test_streams_the_size_that_programs_ask_for_most(self):
        stream = client.images.generate(
            prompt="a red mug",
            size="1024x1024",
            output_format="jpeg",
            output_compression=80,
            stream=True,
            partial_images=3,
            extra_body={"steps": 6, "seed": 7},
        )
        *partials, last = stream
        self.assertEqual([event.partial_image_index for event in partials], [0, 1, 2])
        self.assertEqual((last.type, last.size, last.output_format), ("image_generation.completed", "1024x1024", "jpeg"))
        self.assertTrue(base64.b64decode(last.b64_json).startswith(b"\xff\xd8\xff"))
        self.assertIn("hires_fix", last.receipt)


class Edit(unittest.TestCase):
    def test_starts_from_a_picture(self):
        answer = client.images.edit(
            image=("mug.png", picture(), "image/png"), prompt="a blue mug", size="256x256", extra_body=QUICK
        )
        self.assertEqual(size_of(answer.data[0].b64_json), (256, 256))
        receipt = answer.receipts[0]
        self.assertAlmostEqual(receipt["strength"], 0.6, places=5)
        self.assertTrue(receipt["init_image_digest"].startswith("sha256:"))

    def test_streams(self):
        stream = client.images.edit(
            image=[("mug.png", picture())], prompt="a blue mug", size="256x256", stream=True, extra_body=QUICK
        )
        self.assertEqual([event.type for event in stream], ["image_edit.completed"])

    def test_is_refused_a_mask(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            client.images.edit(image=("a.png", picture()), mask=("m.png", picture()), prompt="x")
        self.assertEqual(refused.exception.param, "mask")

    def test_is_refused_what_is_no_picture(self):
        with self.assertRaises(openai.BadRequestError) as refused:
            client.images.edit(image=("a.png", b"no picture at all"), prompt="x")
        self.assertEqual(refused.exception.param, "image")


class Models(unittest.TestCase):
    def test_are_listed_with_their_other_names(self):
        ids = [model.id for model in client.models.list()]
        self.assertEqual(ids[0], "atelier-tiny")
        self.assertIn("gpt-image-1", ids)

    def test_are_retrieved_one_by_one(self):
        self.assertEqual(client.models.retrieve("dall-e-3").root, "atelier-tiny")
        with self.assertRaises(openai.NotFoundError):
            client.models.retrieve("gpt-5")


class Refusals(unittest.TestCase):
    def test_name_the_field(self):
        for body, param, code in [
            ({"size": "500x501"}, "size", "invalid_value"),
            ({"n": 11}, "n", "invalid_value"),
            ({"response_format": "url"}, "response_format", "invalid_value"),
            ({"background": "transparent"}, "background", "invalid_value"),
            ({"extra_body": {"cfg": 7}}, "cfg", "unknown_parameter"),
        ]:
            with self.subTest(body), self.assertRaises(openai.BadRequestError) as refused:
                client.images.generate(prompt="x", **body)
            self.assertEqual((refused.exception.param, refused.exception.code), (param, code))

    def test_are_of_the_class_that_they_are(self):
        with self.assertRaises(openai.NotFoundError) as refused:
            client.images.generate(prompt="x", model="sdxl")
        self.assertEqual(refused.exception.code, "model_not_found")
        self.assertIsNotNone(refused.exception.request_id)


if __name__ == "__main__":
    unittest.main(verbosity=2)
