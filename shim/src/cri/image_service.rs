//! ImageService.

use std::collections::HashMap;
use std::sync::Arc;

use crisp_cri_proto::{ImageService, v1};
use crisp_store::PullRequest;
use tonic::{Request, Response, Status};

use super::convert;
use super::stream::{Pieces, fits, pieces};
use crate::error::Error;
use crate::node::{Node, blocking};

/// The service.
#[derive(Debug, Clone)]
pub struct Images(pub Arc<Node>);

impl Images {
    fn list(&self, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, Status> {
        let wanted = filter.and_then(|v1::ImageFilter { image }| image).map(|spec| spec.image).unwrap_or_default();
        if wanted.is_empty() {
            return Ok(self.0.store.images().iter().map(|image| convert::image(image)).collect());
        }
        match self.0.store.find(&wanted) {
            Ok(image) => Ok(vec![convert::image(&image)]),
            Err(error) if super::is_unknown_image(&error) => Ok(Vec::new()),
            Err(error) => Err(Error::from(error).into()),
        }
    }
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let v1::ListImagesRequest { filter } = request.into_inner();
        fits(v1::ListImagesResponse { images: self.list(filter)? }, "StreamImages")
    }

    type StreamImagesStream = Pieces<v1::StreamImagesResponse>;

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let v1::StreamImagesRequest { filter } = request.into_inner();
        Ok(pieces(self.list(filter)?, |images| v1::StreamImagesResponse { images }))
    }

    /// An unknown image is no error: kubelet asks this to learn whether it has to pull.
    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let v1::ImageStatusRequest { image, verbose } = request.into_inner();
        let name = convert::image_name(image)?;
        let found = match self.0.store.find(&name) {
            Ok(image) => image,
            Err(error) if super::is_unknown_image(&error) => return Ok(Response::new(Default::default())),
            Err(error) => return Err(Error::from(error).into()),
        };
        let info = if verbose {
            convert::spec_info(&serde_json::json!({
                "created": found.created,
                "platform": found.platform.to_string(),
                "unpacked": found.unpacked,
                "layers": found.layers,
                "env": found.config.env,
                "entrypoint": found.config.entrypoint,
                "cmd": found.config.cmd,
                "user": found.config.user,
                "workingDir": found.config.working_dir,
                "labels": found.config.labels,
                "stopSignal": found.config.stop_signal,
                "volumes": found.config.volumes,
            }))
        } else {
            HashMap::new()
        };
        Ok(Response::new(v1::ImageStatusResponse { image: Some(convert::image(&found)), info }))
    }

    /// Each call asks the registry with its own credentials, also for an image that is here: that is how kubelet learns
    /// whether a pod may use it.
    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        // The sandbox says nothing that a pull depends on.
        let v1::PullImageRequest { image, auth, sandbox_config: _ } = request.into_inner();
        let name = convert::image_name(image)?;
        let reference = name.parse().map_err(|error| Error::from(crisp_store::Error::Reference(error)))?;
        let request =
            PullRequest { reference, credentials: convert::credentials(auth), platform: None, progress: None };
        let image = self.0.store.pull(request).await.map_err(Error::from)?;
        Ok(Response::new(v1::PullImageResponse { image_ref: image.id.to_string() }))
    }

    /// With one of its names all of them go; an unknown image is removed.
    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let v1::RemoveImageRequest { image } = request.into_inner();
        let (name, node) = (convert::image_name(image)?, Arc::clone(&self.0));
        blocking(move || match node.store.remove(&name) {
            Err(error) if !super::is_unknown_image(&error) => Err(Error::from(error)),
            _ => Ok(()),
        })
        .await?;
        Ok(Response::new(Default::default()))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let (images, containers) = self.0.store.usage();
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![convert::fs_usage(&images)],
            container_filesystems: vec![convert::fs_usage(&containers)],
        }))
    }
}
