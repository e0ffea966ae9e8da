"""The words: what a picture can show, in English and Chinese. The first synonym is the usual one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    id: str
    en: tuple[str, ...]
    zh: tuple[str, ...]


PRODUCTS = (
    Term("t-shirt", ("t-shirt", "tee", "t shirt"), ("T恤", "短袖T恤", "短袖")),
    Term("dress", ("dress", "gown"), ("连衣裙", "裙子")),
    Term("hoodie", ("hoodie", "hooded sweatshirt"), ("卫衣", "连帽卫衣")),
    Term("sneaker", ("sneaker", "running shoe", "shoe"), ("运动鞋", "球鞋", "鞋子")),
    Term("cap", ("cap", "baseball cap"), ("帽子", "棒球帽")),
    Term("handbag", ("handbag", "tote bag", "bag"), ("手提包", "手提袋", "包包")),
    Term("backpack", ("backpack", "rucksack"), ("背包", "双肩包")),
    Term("mug", ("mug", "coffee mug", "cup"), ("马克杯", "杯子")),
    Term("teapot", ("teapot", "tea pot"), ("茶壶",)),
    Term("vase", ("vase", "flower vase"), ("花瓶",)),
    Term("lantern", ("lantern", "paper lantern"), ("灯笼", "纸灯笼")),
    Term("mooncake", ("mooncake", "moon cake"), ("月饼",)),
    Term("sofa", ("sofa", "couch"), ("沙发",)),
    Term("umbrella", ("umbrella", "parasol"), ("雨伞", "伞")),
)

COLOURS = (
    Term("red", ("red",), ("红色", "红")),
    Term("orange", ("orange",), ("橙色", "橙")),
    Term("yellow", ("yellow",), ("黄色", "黄")),
    Term("green", ("green",), ("绿色", "绿")),
    Term("blue", ("blue",), ("蓝色", "蓝")),
    Term("purple", ("purple", "violet"), ("紫色", "紫")),
    Term("pink", ("pink",), ("粉色", "粉红色")),
    Term("brown", ("brown",), ("棕色", "咖啡色")),
    Term("black", ("black",), ("黑色", "黑")),
    Term("white", ("white",), ("白色", "白")),
)

BACKGROUNDS = (
    Term("white", ("white background", "plain white background", "white studio"), ("白色背景", "白底", "纯白背景")),
    Term("grey", ("light grey background", "grey background"), ("灰色背景", "浅灰背景")),
    Term("beige", ("beige background", "cream background"), ("米色背景", "奶油色背景")),
    Term("sky", ("sky blue background", "light blue background"), ("天蓝色背景", "浅蓝背景")),
    Term("festive", ("festive red background", "red background"), ("红色喜庆背景", "红色背景", "喜庆背景")),
    Term("wood", ("wooden table", "on a wooden table"), ("木桌", "木桌上", "木质桌面")),
    Term("marble", ("marble table", "on white marble"), ("大理石台面", "大理石背景")),
    Term("garden", ("green garden", "garden background", "outdoors in a garden"), ("花园背景", "绿色花园", "户外花园")),
)

PATTERNS = (
    Term("plain", ("plain", "solid colour"), ("纯色", "素色")),
    Term("stripes", ("striped", "with stripes"), ("条纹",)),
    Term("dots", ("polka dot", "with dots"), ("波点", "圆点")),
    Term("check", ("checked", "plaid"), ("格子", "格纹")),
    Term("floral", ("floral", "with flowers"), ("花卉", "印花")),
)

STYLES = (
    Term("studio", ("product photo",), ("产品图",)),
    Term("guochao", ("guochao", "guochao style", "chinese chic"), ("国潮", "国潮风")),
    Term("nordic", ("nordic", "nordic style", "scandinavian"), ("北欧", "北欧风")),
    Term("watercolour", ("watercolour", "watercolor painting"), ("水彩", "水彩画")),
)
