"""Take the pictures of the server's page: `make_page.py http://localhost:8000`.

The server is `keras-gpt serve smollm2`. It needs Chromium, chromedriver, selenium and
Pillow.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

PROMPT = "The capital of France is"
STORY = "Once upon a time"
FOLDER = Path(__file__).parent


class Page:
    """The page in a browser that has no window.

    Args:
        browser: A `webdriver.Chrome`.
        address: Of the server.
    """

    def __init__(self, browser, address):
        self.browser = browser
        self.address = address
        self.wait = WebDriverWait(browser, 120)
        self.frames = []

    def open(self, width, height, colours):
        """Open it anew, `"light"` or `"dark"`, in the mode of prompts."""
        size = {"width": width, "height": height}
        self.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {**size, "deviceScaleFactor": 1, "mobile": False},
        )
        self.choose_colours(colours)
        self.browser.get(self.address)
        self.click("[data-mode=prompt]")
        self.find("#seed").send_keys("7")
        self.find("#max_tokens").clear()
        self.find("#max_tokens").send_keys("60")

    def choose_colours(self, name):
        """What the system prefers, `"light"` or `"dark"`."""
        feature = {"name": "prefers-color-scheme", "value": name}
        command = "Emulation.setEmulatedMedia"
        self.browser.execute_cdp_cmd(command, {"features": [feature]})

    def find(self, selector):
        """Wait for an element."""
        return self.wait.until(
            lambda _: self.browser.find_elements(By.CSS_SELECTOR, selector)
        )[0]

    def click(self, selector):
        """Wait until an element is seen, and click on it."""
        element = self.find(selector)
        self.wait.until(lambda _: element.is_displayed())
        self.browser.execute_script("arguments[0].click()", element)

    def write(self):
        """Let the model go on from the prompt."""
        self.find("#prompt").send_keys(PROMPT, Keys.ENTER)

    def show(self, which):
        """Press the button `which` below the answer, once it is there."""
        self.click(f".of-prompt .bar button:nth-of-type({which})")
        self.find({1: ".alternatives li", 2: ".heads canvas"}[which])
        self.browser.execute_script("scrollTo(0, 0)")

    def save(self, name):
        """Take a picture."""
        self.browser.save_screenshot(str(FOLDER / name))

    def record(self, seconds):
        """Add a frame that is shown for so long."""
        picture = Image.open(io.BytesIO(self.browser.get_screenshot_as_png()))
        picture = picture.convert("RGB").quantize(64)
        if not self.frames or picture.tobytes() != self.frames[-1][0].tobytes():
            self.frames.append((picture, int(1000 * seconds)))

    def save_frames(self, name):
        """Write the frames as an animation that begins again at its end."""
        pictures, durations = zip(*self.frames, strict=True)
        pictures[0].save(
            FOLDER / name,
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            optimize=True,
        )


def take_pictures(page):
    """Write `page_tokens.png`, in light, and `page_attention.png`, in dark."""
    page.open(1120, 780, "light")
    page.write()
    page.show(1)
    page.save("page_tokens.png")
    page.choose_colours("dark")
    page.show(2)
    page.save("page_attention.png")


def take_recording(page):
    """Write `page.gif`: a prompt, the answer as it comes, its tokens, attention."""
    page.open(880, 660, "light")
    page.find("#prompt").send_keys(STORY)
    page.record(1)
    page.find("#prompt").send_keys(Keys.ENTER)
    done = page.find(".of-prompt .bar")
    while not done.is_displayed():
        page.record(0.15)
    page.record(1.5)
    page.show(1)
    page.record(2)
    page.browser.execute_script(
        "document.querySelector('.alternatives').scrollIntoView({block: 'center'})"
    )
    page.record(3)
    page.show(2)
    page.record(4)
    page.save_frames("page.gif")


def main():
    """Take the pictures and the recording."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium")
    # without a path selenium would look for one on the internet
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as browser:
        page = Page(browser, sys.argv[1])
        take_pictures(page)
        take_recording(page)


if __name__ == "__main__":
    main()
