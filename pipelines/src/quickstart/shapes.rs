//! Pictures of two coloured shapes, and the one caption that is true of each.

use image::{Rgb, RgbImage};
use rand::Rng;
use rand::seq::IndexedRandom;

/// Side of a picture, pixels.
pub const SIDE: u32 = 48;
/// Samples along each side of a pixel: edges are smooth.
const SUBSAMPLES: u32 = 4;

/// Names and colours.
const COLOURS: [(&str, [f32; 3]); 4] =
    [("red", [220., 40., 40.]), ("green", [40., 170., 60.]), ("blue", [50., 80., 220.]), ("yellow", [235., 205., 40.])];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Shape {
    Circle,
    Square,
    Triangle,
}

/// One shape of a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Object {
    large: bool,
    colour: usize,
    shape: Shape,
}

/// What a picture shows: two objects, the first left of or above the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Scene {
    objects: [Object; 2],
    above: bool,
}

impl Scene {
    /// Any of the 1,152 scenes, each as likely as the others.
    pub fn random(rng: &mut impl Rng) -> Self {
        let objects = [Object::random(rng), Object::random(rng)];
        Self { objects, above: rng.random() }
    }

    /// `a small red circle left of a large blue square`
    pub fn caption(&self) -> String {
        let relation = if self.above { "above" } else { "left of" };
        format!("{} {relation} {}", self.objects[0].words(), self.objects[1].words())
    }

    /// A picture of it: places, sizes and colours vary a little, so no two pictures are alike.
    pub fn picture(&self, rng: &mut impl Rng) -> RgbImage {
        let background = rng.random_range(225.0..255.0);
        let mut canvas = vec![[background; 3]; (SIDE * SIDE) as usize];
        let side = SIDE as f32;
        for (index, object) in self.objects.iter().enumerate() {
            let near = rng.random_range(11.0..13.0);
            let along = if index == 0 { near } else { side - near };
            let across = side / 2.0 + rng.random_range(-4.0..4.0);
            let centre = if self.above { [across, along] } else { [along, across] };
            object.draw(centre, &mut canvas, rng);
        }
        RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb(canvas[(y * SIDE + x) as usize].map(|value| value.round() as u8)))
    }
}

impl Object {
    fn random(rng: &mut impl Rng) -> Self {
        let shapes = [Shape::Circle, Shape::Square, Shape::Triangle];
        let shape = shapes.choose(rng).copied().unwrap_or(Shape::Circle);
        Self { large: rng.random(), colour: rng.random_range(0..COLOURS.len()), shape }
    }

    fn words(&self) -> String {
        let size = if self.large { "large" } else { "small" };
        let shape = match self.shape {
            Shape::Circle => "circle",
            Shape::Square => "square",
            Shape::Triangle => "triangle",
        };
        format!("a {size} {} {shape}", COLOURS[self.colour].0)
    }

    fn draw(&self, centre: [f32; 2], canvas: &mut [[f32; 3]], rng: &mut impl Rng) {
        let radius = if self.large { rng.random_range(10.0..11.0) } else { rng.random_range(5.5..6.0) };
        let colour = COLOURS[self.colour].1.map(|value| (value + rng.random_range(-15.0..15.0f32)).clamp(0.0, 255.0));
        for (index, pixel) in canvas.iter_mut().enumerate() {
            let corner = [index as u32 % SIDE, index as u32 / SIDE];
            let covered = self.coverage(corner, centre, radius);
            for (value, paint) in pixel.iter_mut().zip(colour) {
                *value += covered * (paint - *value);
            }
        }
    }

    /// Share of a pixel that the shape covers.
    fn coverage(&self, corner: [u32; 2], centre: [f32; 2], radius: f32) -> f32 {
        let offset =
            |axis: usize, sample: u32| corner[axis] as f32 + (sample as f32 + 0.5) / SUBSAMPLES as f32 - centre[axis];
        let samples = (0..SUBSAMPLES * SUBSAMPLES).map(|i| (offset(0, i % SUBSAMPLES), offset(1, i / SUBSAMPLES)));
        let inside = samples.filter(|&(x, y)| self.shape.contains(x / radius, y / radius)).count();
        inside as f32 / (SUBSAMPLES * SUBSAMPLES) as f32
    }
}

impl Shape {
    /// Whether a point lies in the shape around the origin whose size is 1.
    fn contains(self, x: f32, y: f32) -> bool {
        match self {
            Self::Circle => x * x + y * y <= 1.0,
            Self::Square => x.abs().max(y.abs()) <= 1.0,
            Self::Triangle => (-1.0..=0.5).contains(&y) && x.abs() <= (y + 1.0) / 1.5,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;
    use std::collections::HashSet;

    #[test]
    fn a_caption_is_true_of_one_scene_only() {
        let mut rng = StdRng::seed_from_u64(1);
        let scenes: HashSet<Scene> = (0..20_000).map(|_| Scene::random(&mut rng)).collect();
        let captions: HashSet<String> = scenes.iter().map(Scene::caption).collect();
        assert_eq!((scenes.len(), captions.len()), (1152, 1152));
    }

    #[test]
    fn colours_are_where_the_caption_says() {
        let object = |large, colour| Object { large, colour, shape: Shape::Square };
        let scene = Scene { objects: [object(true, 0), object(true, 2)], above: false };
        assert_eq!(scene.caption(), "a large red square left of a large blue square");
        let picture = scene.picture(&mut StdRng::seed_from_u64(7));
        let [left, right] = [picture.get_pixel(12, 24).0, picture.get_pixel(36, 24).0];
        assert!(left[0] > left[2] + 100 && right[2] > right[0] + 100, "{left:?} {right:?}");
        assert_eq!(picture, scene.picture(&mut StdRng::seed_from_u64(7)), "the same for the same seed");
    }
}
